// What works beside the threads on sm_90a: the copy engine, the products of warpgroups; and the barriers by which
// threads learn of their work: mbarriers, and barriers of some warps.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <vector>

namespace emu {

struct Machine;

// A clock a party.
using Known = std::vector<uint32_t>;
// The later clock of each.
void merge(Known& into, const Known& from);

// Whether registers may be touched: not while a product uses them, nor until a wait hands them back.
struct Lock {
    bool fenced = false, away = false;
    uint32_t products = 0, line = 0;
};

// A product that one thread of a warpgroup has issued.
struct Product {
    std::source_location loc;
    // The thread's part of the accumulators, N / 2 of them, and of a where that is in registers.
    float* d;
    Lock *d_lock, *a_lock;
    uint32_t a[4];
    uint64_t a_at, b_at;
    uint32_t n;
    bool add, across;
};

// The emulator's form of a tensor map; `src/tensor.rs` has the same struct. Strides in elements, of the outer three.
struct Map {
    const uint16_t* from;
    uint64_t elements;
    uint64_t strides[3];
    uint32_t dims[4], box[4];
};
static_assert(sizeof(Map) == 72, "as in tensor.rs");

class Async {
  public:
    using Loc = std::source_location;
    static constexpr uint32_t MBARRIERS = 64, GROUPS = 16;

    explicit Async(Machine& m) : m(m) {}
    void clear();

    // -- mbarriers: `loc` is the line of the calling thread --
    void init(uint32_t at, uint32_t count, Loc loc);
    void init_fence();
    void arrive(uint32_t at, uint32_t bytes, Loc loc);
    void wait(uint32_t at, uint32_t parity, Loc loc);

    // -- the copy engine --
    void copy(uint32_t to, const Map& map, uint32_t at, const uint32_t (&corner)[4], Loc loc);
    void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t at, Loc loc);
    // Lands one copy, chosen by the schedule; false where none is under way.
    bool land();
    bool flying() const { return !flights.empty(); }
    Loc oldest() const { return flights.front().loc; }

    // -- barriers of some warps --
    void meet(uint32_t id, uint32_t count, bool stay, Loc loc);

    // What the thread's mbarrier or group still lacks, for a report.
    void lacks(uint32_t thread, char* text, std::size_t size);

  private:
    struct Mbarrier {
        uint32_t at, count, pending;
        int64_t bytes = 0;
        uint32_t phase = 0;
        bool fenced = false;
        uint32_t maker, made, line;
        // What those who have come knew, and what is known to whom the last phase let through.
        Known gathering, known;
    };
    struct Flight {
        uint32_t to;
        Map map;
        uint32_t mbarrier;
        uint32_t corner[4];
        // Of a copy without a map.
        const char* from;
        uint32_t bytes;
        Loc loc;
    };
    struct Group {
        uint32_t count = 0, came = 0;
        Known known;
    };
    uint32_t find(uint32_t at, Loc loc);
    void settle(Mbarrier& bar);
    void start(Flight flight, uint32_t at);
    void bring(const Flight& flight);

    Machine& m;
    std::vector<Mbarrier> mbarriers;
    std::vector<Flight> flights;
    Group groups[GROUPS];
};

// Runs this warpgroup's groups of products but the last `left`, when all its threads have come here.
void wait_products(uint32_t left, std::source_location loc);
// Notes a product of the calling thread, and checks that its operands are there.
void issue_product(Product p);

}  // namespace emu
