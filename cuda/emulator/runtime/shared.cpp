// The rules of shared memory. A thread reads only data that has been written, and a barrier lies between the write and
// the read. It writes only where no copy is in flight, and a barrier lies between all earlier accesses and the write.
#include "shared.h"
#include "machine.h"
#include <cstring>

namespace emu {

void Shared::inside(uint32_t thread, uint32_t at, uint32_t size, Loc loc) {
    if (at < BASE || uint64_t(at) + size > BASE + bytes.size()) {
        m.fail(thread, loc, "out of bounds: %u bytes at %d of %zu bytes of shared memory", size, int(at - BASE),
               bytes.size());
    }
    if (at % size) m.fail(thread, loc, "misaligned: %u bytes at %u of shared memory", size, at - BASE);
}

Event Shared::now(uint32_t thread, Loc loc) const { return {thread, m.threads[thread].clock, loc.line()}; }

// A cell remembers two readers, of different warps if more than one warp reads it.
void Shared::note_read(Cell& cell, Event by) {
    int slot = cell.readers && cell.reader[0] / 32 != by.who / 32;
    cell.readers = cell.readers > slot ? cell.readers : slot + 1;
    cell.reader[slot] = by.who;
    cell.read_clock[slot] = by.clock;
    cell.read_line[slot] = by.line;
}

void Shared::may_read(uint32_t thread, const Cell& cell, Loc loc) {
    if (cell.state == State::unwritten) m.fail(thread, loc, "unwritten: shared memory at %u is read", place(cell));
    if (cell.state == State::barrier) m.fail(thread, loc, "an mbarrier at %u of shared memory is read", place(cell));
    if (cell.state == State::flying) {
        m.fail(thread, loc, "in flight: shared memory at %u is read while a copy of %s (line %u) fills it",
               place(cell), m.name(cell.writer).c_str(), cell.line);
    }
    if (!m.knows(thread, cell.writer, cell.clock)) {
        m.fail(thread, loc, "race: shared memory at %u is read, %s wrote it (line %u), no barrier between",
               place(cell), m.name(cell.writer).c_str(), cell.line);
    }
}

void Shared::read(uint32_t thread, uint32_t at, void* to, uint32_t size, Loc loc) {
    inside(thread, at, size, loc);
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        may_read(thread, cells[i], loc);
        note_read(cells[i], now(thread, loc));
    }
    memcpy(to, &bytes[at - BASE], size);
}

void Shared::may_write(uint32_t thread, uint32_t at, uint32_t size, Loc loc) {
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        const Cell& cell = cells[i];
        if (cell.state == State::barrier) m.fail(thread, loc, "an mbarrier at %u of shared memory is written", 2 * i);
        if (cell.state == State::flying) {
            m.fail(thread, loc, "in flight: shared memory at %u is written while a copy of %s (line %u) fills it",
                   2 * i, m.name(cell.writer).c_str(), cell.line);
        }
        if (cell.state == State::written && !m.knows(thread, cell.writer, cell.clock)) {
            m.fail(thread, loc, "race: shared memory at %u is written, %s wrote it (line %u), no barrier between",
                   2 * i, m.name(cell.writer).c_str(), cell.line);
        }
        for (int r = 0; r < cell.readers; r++) {
            if (!m.knows(thread, cell.reader[r], cell.read_clock[r])) {
                m.fail(thread, loc, "race: shared memory at %u is written, %s read it (line %u), no barrier between",
                       2 * i, m.name(cell.reader[r]).c_str(), cell.read_line[r]);
            }
        }
    }
}

void Shared::mark(Event by, uint32_t at, uint32_t size, State state) {
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size + 1) / 2; i++) {
        cells[i] = Cell();
        cells[i].state = state;
        cells[i].writer = by.who;
        cells[i].clock = by.clock;
        cells[i].line = by.line;
    }
}

void Shared::write(uint32_t thread, uint32_t at, const void* from, uint32_t size, Loc loc) {
    inside(thread, at, size, loc);
    may_write(thread, at, size, loc);
    mark(now(thread, loc), at, size, State::written);
    memcpy(&bytes[at - BASE], from, size);
}

void Shared::fly(uint32_t thread, const Copying& copy, Loc loc) {
    inside(thread, copy.to, 16, loc);
    may_write(thread, copy.to, 16, loc);
    mark(now(thread, loc), copy.to, 16, State::flying);
}

void Shared::land(uint32_t thread, const Copying& copy, Loc loc) {
    mark(now(thread, loc), copy.to, 16, State::written);
    memset(&bytes[copy.to - BASE], 0, 16);
    memcpy(&bytes[copy.to - BASE], copy.from, copy.bytes);
}

void Shared::make_barrier(uint32_t thread, uint32_t at, Loc loc) {
    inside(thread, at, 8, loc);
    may_write(thread, at, 8, loc);
    mark(now(thread, loc), at, 8, State::barrier);
}

// The copy engine may overwrite what a thread wrote only after a proxy fence of that thread.
void Shared::fly_tile(uint32_t thread, Event copy, uint32_t at, uint32_t size, Loc loc) {
    if (at < BASE || uint64_t(at) + size > BASE + bytes.size()) {
        m.fail(thread, loc, "out of bounds: a tile of %u bytes at %d of %zu bytes of shared memory", size,
               int(at - BASE), bytes.size());
    }
    may_write(thread, at, size, loc);
    for (uint32_t i = (at - BASE) / 2; i < (at - BASE + size) / 2; i++) {
        if (cells[i].state == State::written && !m.fenced(thread, cells[i].writer, cells[i].clock)) {
            m.fail(thread, loc, "proxy: a copy over what thread %u wrote (line %u), no proxy fence between",
                   cells[i].writer, cells[i].line);
        }
    }
    mark(copy, at, size, State::flying);
}

void Shared::land_tile(Event copy, uint32_t at, uint32_t size) { mark(copy, at, size, State::written); }

void Shared::async_read(uint32_t thread, Event reader, uint32_t at, bool all, Loc loc) {
    inside(thread, at, 16, loc);
    uint32_t first = (at - BASE) / 2;
    for (uint32_t i = first; i < first + (all ? 8 : 1); i++) {
        // Usually one party has written the whole piece at once: equal cells need no second check.
        bool known = i > first && cells[i].is_like(cells[i - 1]);
        if (!known) may_read(thread, cells[i], loc);
        if (!known && !m.fenced(thread, cells[i].writer, cells[i].clock)) {
            m.fail(thread, loc, "proxy: a product reads what thread %u wrote (line %u), no proxy fence between",
                   cells[i].writer, cells[i].line);
        }
        if (all) note_read(cells[i], reader);
    }
}

}  // namespace emu
