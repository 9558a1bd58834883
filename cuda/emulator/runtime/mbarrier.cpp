// Mbarriers, named barriers of some warps, and the copy engine, which completes a copy only when no thread can run.
#include "async.h"
#include "machine.h"
#include <algorithm>
#include <cstdio>
#include <cstring>

namespace emu {

void Async::clear() {
    mbarriers.clear();
    flights.clear();
    for (Group& g : groups) g = Group{0, 0, Known(m.parties(), 0)};
}

uint32_t Async::find(uint32_t at, Loc loc) {
    auto bar = std::find_if(mbarriers.begin(), mbarriers.end(), [&](auto& b) { return b.at == at; });
    uint32_t t = m.index();
    if (bar == mbarriers.end()) m.fail(t, loc, "unwritten: no mbarrier at %u of shared memory", at - Shared::BASE);
    if (!m.knows(t, bar->maker, bar->made)) {
        m.fail(t, loc, "race: the mbarrier at %u is used, thread %u made it (line %u), no barrier between",
               at - Shared::BASE, bar->maker, bar->line);
    }
    return uint32_t(bar - mbarriers.begin());
}

void Async::init(uint32_t at, uint32_t count, Loc loc) {
    uint32_t t = m.index();
    m.shared.make_barrier(t, at, loc);
    if (mbarriers.size() == MBARRIERS) m.fail(t, loc, "more than %u mbarriers", MBARRIERS);
    if (!count) m.fail(t, loc, "an mbarrier for no arrivals");
    Known none(m.parties(), 0);
    mbarriers.push_back({at, count, count, 0, 0, false, t, m.me().clock, loc.line(), none, none});
}

void Async::init_fence() {
    for (auto& bar : mbarriers) bar.fenced |= bar.maker == m.index();
}

// A phase ends when all arrivals and all bytes have come.
void Async::settle(Mbarrier& bar) {
    if (bar.pending || bar.bytes) return;
    bar.phase++;
    bar.pending = bar.count;
    merge(bar.known, bar.gathering);
    bar.known[m.copies_to(uint32_t(&bar - mbarriers.data()))] = bar.phase;
    for (uint32_t t = 0; t < m.size(); t++) {
        Thread& thread = m.threads[t];
        if (thread.at != At::mbarrier || thread.bar != bar.at || (bar.phase & 1) == thread.parity) continue;
        m.learn(t, bar.known);
        thread.at = At::ready;
    }
}

void Async::arrive(uint32_t at, uint32_t bytes, Loc loc) {
    Mbarrier& bar = mbarriers[find(at, loc)];
    if (!bar.pending) {
        m.fail(m.index(), loc, "too many: %u arrivals at the mbarrier at %u have come", bar.count, at - Shared::BASE);
    }
    m.tell(m.index(), bar.gathering);
    bar.pending--;
    bar.bytes += bytes;
    settle(bar);
}

void Async::wait(uint32_t at, uint32_t parity, Loc loc) {
    Mbarrier& bar = mbarriers[find(at, loc)];
    if (parity > 1) m.fail(m.index(), loc, "a parity of %u", parity);
    if ((bar.phase & 1) != parity) return m.learn(m.index(), bar.known);
    m.me().bar = at;
    m.me().parity = parity;
    m.wait(At::mbarrier, loc);
}

void Async::start(Flight flight, uint32_t at) {
    uint32_t t = m.index();
    flight.mbarrier = find(at, flight.loc);
    const Mbarrier& bar = mbarriers[flight.mbarrier];
    if (!bar.fenced) {
        m.fail(t, flight.loc, "unfenced: no mbar_init_fence after the mbarrier at %u was made (line %u)",
               at - Shared::BASE, bar.line);
    }
    m.shared.fly_tile(t, {m.copies_to(flight.mbarrier), 0, flight.loc.line()}, flight.to, flight.bytes, flight.loc);
    flights.push_back(flight);
}

void Async::copy(uint32_t to, const Map& map, uint32_t at, const uint32_t (&corner)[4], Loc loc) {
    if (map.box[0] != 64) m.fail(m.index(), loc, "a box of rows of %u elements, not 64", map.box[0]);
    if (to % 1024) m.fail(m.index(), loc, "misaligned: a tile at %u of shared memory", to - Shared::BASE);
    uint32_t bytes = map.box[0] * map.box[1] * map.box[2] * map.box[3] * 2;
    m.report.copied += bytes;
    start({to, map, 0, {corner[0], corner[1], corner[2], corner[3]}, nullptr, bytes, loc}, at);
}

void Async::copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t at, Loc loc) {
    if (to % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
        m.fail(m.index(), loc, "misaligned: a copy of %u bytes to %u of shared memory", bytes, to - Shared::BASE);
    }
    m.report.copied += bytes;
    start({to, Map(), 0, {}, static_cast<const char*>(from), bytes, loc}, at);
}

bool Async::land() {
    if (flights.empty()) return false;
    uint32_t schedule = m.launch.schedule;
    size_t i = schedule == 0 ? 0 : schedule == 1 ? flights.size() - 1 : m.random() % flights.size();
    Flight flight = flights[i];
    flights.erase(flights.begin() + ptrdiff_t(i));
    bring(flight);
    Mbarrier& bar = mbarriers[flight.mbarrier];
    m.shared.land_tile({m.copies_to(flight.mbarrier), bar.phase + 1, flight.loc.line()}, flight.to, flight.bytes);
    bar.bytes -= flight.bytes;
    settle(bar);
    return true;
}

// Copies a box. Its rows of 64 elements (x) are stored one after another: y runs fastest, then z, then w. The 16-byte
// pieces of a row of 128 bytes are swizzled: bits 7 to 9 of an address are XORed into bits 4 to 6. Elements outside the
// tensor are zero.
void Async::bring(const Flight& f) {
    if (f.from) return m.shared.put_bytes(f.to, f.from, f.bytes);
    const Map& map = f.map;
    auto outside = [&](int i, uint32_t at) { return int32_t(f.corner[i] + at) < 0 || f.corner[i] + at >= map.dims[i]; };
    uint32_t row = 0;
    for (uint32_t w = 0; w < map.box[3]; w++) {
        for (uint32_t z = 0; z < map.box[2]; z++) {
            for (uint32_t y = 0; y < map.box[1]; y++, row++) {
                bool gone = outside(1, y) || outside(2, z) || outside(3, w);
                uint64_t start = (f.corner[1] + y) * map.strides[0] + (f.corner[2] + z) * map.strides[1] +
                                 (f.corner[3] + w) * map.strides[2];
                for (uint32_t x = 0; x < 64; x++) {
                    uint32_t at = f.to + row * 128 + x * 2;
                    uint64_t i = start + f.corner[0] + x;
                    bool zero = gone || outside(0, x) || i >= map.elements;
                    m.shared.put(at ^ (at >> 7 & 7) << 4, zero ? 0 : map.from[i]);
                }
            }
        }
    }
}

// Arrives at the barrier; with `stay`, waits until all `count` threads have arrived.
void Async::meet(uint32_t id, uint32_t count, bool stay, Loc loc) {
    uint32_t t = m.index();
    if (!id || id >= GROUPS || !count || count % 32 || count > m.size()) {
        m.fail(t, loc, "a barrier %u of %u threads", id, count);
    }
    Group& group = groups[id];
    if (group.came && group.count != count) {
        m.fail(t, loc, "a barrier of %u threads, and of %u for others", count, group.count);
    }
    group.count = count;
    m.tell(t, group.known);
    if (++group.came < count) {
        m.me().bar = id;
        return stay ? m.wait(At::group, loc) : void();
    }
    group.came = 0;
    for (uint32_t o = 0; o < m.size(); o++) {
        if (m.threads[o].at != At::group || m.threads[o].bar != id) continue;
        m.learn(o, group.known);
        m.threads[o].at = At::ready;
    }
    if (stay) m.learn(t, group.known);
}

void Async::lacks(uint32_t thread, char* text, size_t size) {
    const Thread& t = m.threads[thread];
    if (t.at == At::group) {
        snprintf(text, size, "barrier %u waits for %u of %u threads", t.bar, groups[t.bar].count - groups[t.bar].came,
                 groups[t.bar].count);
        return;
    }
    for (const Mbarrier& bar : mbarriers) {
        if (bar.at != t.bar) continue;
        snprintf(text, size, "the mbarrier at %u is in phase %u, which waits for %u of %u arrivals and %lld bytes",
                 t.bar - Shared::BASE, bar.phase, bar.pending, bar.count, static_cast<long long>(bar.bytes));
    }
}

}  // namespace emu
