// The parts of sm_90a that run asynchronously to the threads (the copy engine and the products of warpgroups), and the
// barriers that synchronise threads with them or with each other (mbarriers, and named barriers of some warps).
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <vector>

namespace emu {

struct Machine;

// One clock for each party (`machine.h`).
using Known = std::vector<uint32_t>;
// Takes the later clock of each party.
void merge(Known& into, const Known& from);

// Whether registers may be accessed: not while a product uses them, and afterwards only once they have been pinned.
struct Lock {
    bool fenced = false, away = false;
    uint32_t products = 0, line = 0;
};

// A product that one thread of a warpgroup has issued.
struct Product {
    std::source_location loc;
    // The thread's N / 2 accumulators, and its part of the operand a if that lies in registers.
    float* d;
    Lock *d_lock, *a_lock;
    uint32_t a[4];
    uint64_t a_at, b_at;
    uint32_t n;
    // Whether the operands lie in shared memory with rows of k.
    bool add, a_across, b_across;
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
    // Completes one copy, chosen by the schedule; false if none is under way.
    bool land();
    bool flying() const { return !flights.empty(); }
    Loc oldest() const { return flights.front().loc; }

    // -- barriers of some warps --
    void meet(uint32_t id, uint32_t count, bool stay, Loc loc);

    // Describes, for a report, what the barrier for which the thread waits still lacks.
    void lacks(uint32_t thread, char* text, std::size_t size);

  private:
    struct Mbarrier {
        uint32_t at, count, pending;
        int64_t bytes = 0;
        uint32_t phase = 0;
        bool fenced = false;
        uint32_t maker, made, line;
        // The clocks that the threads which have arrived in this phase knew, and the clocks that a thread learns from
        // the end of the last phase.
        Known gathering, known;
    };
    struct Flight {
        uint32_t to;
        Map map;
        uint32_t mbarrier;
        uint32_t corner[4];
        // The source of a copy without a map.
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

// Runs all groups of products of this warpgroup but the last `left`, as soon as all of its threads wait here.
void wait_products(uint32_t left, std::source_location loc);
// Records a product of the calling thread, and checks that its operands have been written.
void issue_product(Product p);

}  // namespace emu
