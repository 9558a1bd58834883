// Shared memory with a shadow cell for each two bytes, which records whether they were written, by which party and
// when, the parties that have read them since, and whether a copy is still filling them.
#pragma once
#include <cstdint>
#include <cstring>
#include <source_location>
#include <vector>

namespace emu {

struct Machine;

// A cp.async under way: it writes sixteen bytes, of which `bytes` are copied from `from` and the rest are zero.
struct Copying {
    uint32_t to;
    const char* from;
    uint32_t bytes;
};

// An access by a party: at which of its clocks, and in which line.
struct Event {
    uint32_t who, clock, line;
};

class Shared {
  public:
    using Loc = std::source_location;
    // The first address that device code gets: not 0, because it need not be 0 on a device.
    static constexpr uint32_t BASE = 1024;

    Shared(Machine& m, uint32_t size) : m(m), bytes(size), cells((size + 1) / 2) {}
    void clear() { cells.assign(cells.size(), Cell()); }

    void read(uint32_t thread, uint32_t at, void* to, uint32_t size, Loc loc);
    void write(uint32_t thread, uint32_t at, const void* from, uint32_t size, Loc loc);
    // The start and the end of a cp.async.
    void fly(uint32_t thread, const Copying& copy, Loc loc);
    void land(uint32_t thread, const Copying& copy, Loc loc);

    // Eight bytes become an mbarrier, which only its own operations touch from then on.
    void make_barrier(uint32_t thread, uint32_t at, Loc loc);
    // The start and the end of a tile's copy by the copy engine, which `put`s the data.
    void fly_tile(uint32_t thread, Event copy, uint32_t at, uint32_t size, Loc loc);
    void land_tile(Event copy, uint32_t at, uint32_t size);
    void put_bytes(uint32_t at, const char* from, uint32_t size) { memcpy(&bytes[at - BASE], from, size); }
    void put(uint32_t at, uint16_t value) { memcpy(&bytes[at - BASE], &value, 2); }
    // Sixteen bytes that a product will read on behalf of this thread. With `all`, every cell is checked and marked as
    // read by `reader`; without, only the first is checked.
    void async_read(uint32_t thread, Event reader, uint32_t at, bool all, Loc loc);
    const uint16_t* get(uint32_t at) const { return reinterpret_cast<const uint16_t*>(&bytes[at - BASE]); }

  private:
    enum class State : uint8_t { unwritten, written, flying, barrier };
    struct Cell {
        State state = State::unwritten;
        uint8_t readers = 0;
        uint16_t writer = 0;
        uint32_t clock = 0;
        uint32_t line = 0;
        // Two readers since the last write, of different warps if more than one warp has read it.
        uint16_t reader[2] = {};
        uint32_t read_clock[2] = {}, read_line[2] = {};
        bool is_like(const Cell& o) const { return state == o.state && writer == o.writer && clock == o.clock; }
    };
    void inside(uint32_t thread, uint32_t at, uint32_t size, Loc loc);
    void may_read(uint32_t thread, const Cell& cell, Loc loc);
    void may_write(uint32_t thread, uint32_t at, uint32_t size, Loc loc);
    void mark(Event by, uint32_t at, uint32_t size, State state);
    static void note_read(Cell& cell, Event by);
    Event now(uint32_t thread, Loc loc) const;
    uint32_t place(const Cell& cell) const { return uint32_t(&cell - cells.data()) * 2; }

    Machine& m;
    std::vector<char> bytes;
    std::vector<Cell> cells;
};

}  // namespace emu
