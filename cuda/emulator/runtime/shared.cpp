// The rules of shared memory: what is read was written, by someone of whom the reader knows; what is written is
// not under way, and all who read or wrote it before are known to have done so.
#include "shared.h"
#include "machine.h"
#include <cstring>

namespace emu {

void Shared::inside(uint32_t thread, uint32_t at, uint32_t size, Loc loc) {
    if (at < BASE || uint64_t(at) + size > BASE + bytes.size()) {
        m.fail(thread, loc, "out of bounds: %u bytes at %d of %zu bytes of shared memory", size, int(at - BASE), bytes.size());
    }
    if (at % size) m.fail(thread, loc, "misaligned: %u bytes at %u of shared memory", size, at - BASE);
}

void Shared::note_read(Cell& cell, uint32_t thread, Loc loc) {
    int slot = cell.readers && cell.reader[0] / 32 != thread / 32;
    cell.readers = cell.readers > slot ? cell.readers : slot + 1;
    cell.reader[slot] = thread;
    cell.read_clock[slot] = m.threads[thread].clock;
    cell.read_line[slot] = loc.line();
}

void Shared::read(uint32_t thread, uint32_t at, void* to, uint32_t size, Loc loc) {
    inside(thread, at, size, loc);
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        Cell& cell = cells[i];
        if (cell.state == State::unwritten) m.fail(thread, loc, "unwritten: shared memory at %u is read", 2 * i);
        if (cell.state == State::flying) {
            m.fail(thread, loc, "in flight: shared memory at %u is read while the cp.async of thread %u (line %u) fills it",
                   2 * i, cell.writer, cell.line);
        }
        if (!m.knows(thread, cell.writer, cell.clock)) {
            m.fail(thread, loc, "race: shared memory at %u is read, thread %u wrote it (line %u), no barrier between", 2 * i,
                   cell.writer, cell.line);
        }
        note_read(cell, thread, loc);
    }
    memcpy(to, &bytes[at - BASE], size);
}

void Shared::may_write(uint32_t thread, uint32_t at, uint32_t size, Loc loc) {
    inside(thread, at, size, loc);
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        const Cell& cell = cells[i];
        if (cell.state == State::flying) {
            m.fail(thread, loc, "in flight: shared memory at %u is written while the cp.async of thread %u (line %u) fills it",
                   2 * i, cell.writer, cell.line);
        }
        if (cell.state == State::written && !m.knows(thread, cell.writer, cell.clock)) {
            m.fail(thread, loc, "race: shared memory at %u is written, thread %u wrote it (line %u), no barrier between", 2 * i,
                   cell.writer, cell.line);
        }
        for (int r = 0; r < cell.readers; r++) {
            if (!m.knows(thread, cell.reader[r], cell.read_clock[r])) {
                m.fail(thread, loc, "race: shared memory at %u is written, thread %u read it (line %u), no barrier between", 2 * i,
                       cell.reader[r], cell.read_line[r]);
            }
        }
    }
}

void Shared::mark(uint32_t thread, uint32_t at, uint32_t size, State state, Loc loc) {
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        cells[i] = Cell();
        cells[i].state = state;
        cells[i].writer = thread;
        cells[i].clock = m.threads[thread].clock;
        cells[i].line = loc.line();
    }
}

void Shared::write(uint32_t thread, uint32_t at, const void* from, uint32_t size, Loc loc) {
    may_write(thread, at, size, loc);
    mark(thread, at, size, State::written, loc);
    memcpy(&bytes[at - BASE], from, size);
}

void Shared::fly(uint32_t thread, const Copying& copy, Loc loc) {
    may_write(thread, copy.to, 16, loc);
    mark(thread, copy.to, 16, State::flying, loc);
}

void Shared::land(uint32_t thread, const Copying& copy, Loc loc) {
    mark(thread, copy.to, 16, State::written, loc);
    memset(&bytes[copy.to - BASE], 0, 16);
    memcpy(&bytes[copy.to - BASE], copy.from, copy.bytes);
}

}  // namespace emu
