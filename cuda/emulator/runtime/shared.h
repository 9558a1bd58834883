// Shared memory with a shadow: each two bytes know whether they were written, by whom and when, who read them
// since, and whether a cp.async still fills them.
#pragma once
#include <cstdint>
#include <source_location>
#include <vector>

namespace emu {

struct Machine;

// A cp.async under way: sixteen bytes, of which `bytes` come from `from` and the rest is zero.
struct Copying {
    uint32_t to;
    const char* from;
    uint32_t bytes;
};

class Shared {
  public:
    using Loc = std::source_location;
    // What device code gets as the first address: not 0, for it need not be 0 on a device.
    static constexpr uint32_t BASE = 1024;

    Shared(Machine& m, uint32_t size) : m(m), bytes(size), cells((size + 1) / 2) {}
    void clear() { cells.assign(cells.size(), Cell()); }

    void read(uint32_t thread, uint32_t at, void* to, uint32_t size, Loc loc);
    void write(uint32_t thread, uint32_t at, const void* from, uint32_t size, Loc loc);
    // The start and the end of a cp.async.
    void fly(uint32_t thread, const Copying& copy, Loc loc);
    void land(uint32_t thread, const Copying& copy, Loc loc);

  private:
    enum class State : uint8_t { unwritten, written, flying };
    struct Cell {
        State state = State::unwritten;
        uint8_t readers = 0;
        uint16_t writer = 0;
        uint32_t clock = 0;
        uint32_t line = 0;
        // Two readers since the last write, of two warps where there are two.
        uint16_t reader[2] = {};
        uint32_t read_clock[2] = {}, read_line[2] = {};
    };
    void inside(uint32_t thread, uint32_t at, uint32_t size, Loc loc);
    void may_write(uint32_t thread, uint32_t at, uint32_t size, Loc loc);
    void mark(uint32_t thread, uint32_t at, uint32_t size, State state, Loc loc);
    void note_read(Cell& cell, uint32_t thread, Loc loc);

    Machine& m;
    std::vector<char> bytes;
    std::vector<Cell> cells;
};

}  // namespace emu
