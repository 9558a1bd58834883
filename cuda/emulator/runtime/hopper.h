// The host half of `prim_hopper.cuh`: the same names, each a call into the emulator.
#pragma once
#include "async.h"
#include "host.h"

// -- mbarriers --

DEVICE void mbar_init(u32 bar, u32 count HERE) { emu::machine->async.init(bar, count, at_); }
DEVICE void mbar_init_fence() { emu::machine->async.init_fence(); }
DEVICE void mbar_arrive(u32 bar HERE) { emu::machine->async.arrive(bar, 0, at_); }
DEVICE void mbar_expect(u32 bar, u32 bytes HERE) { emu::machine->async.arrive(bar, bytes, at_); }
DEVICE void mbar_wait(u32 bar, u32 parity HERE) { emu::machine->async.wait(bar, parity, at_); }

// -- the copy engine --

DEVICE void tma_load(u32 to, const TensorMap& map, u32 bar, u32 x, u32 y, u32 z, u32 w HERE) {
    emu::Map m;
    memcpy(&m, map.words, sizeof m);
    emu::machine->async.copy(to, m, bar, {x, y, z, w}, at_);
}
template <class T> DEVICE void bulk_load(u32 to, View<T> x, u64 i, u32 bytes, u32 bar HERE) {
    inside(x, i, bytes / sizeof(T), at_);
    emu::machine->async.copy_bytes(to, x.p + i, bytes, bar, at_);
}
DEVICE void proxy_fence() {
    emu::Thread& me = emu::machine->me();
    me.proxy_fences.push_back(me.clock++);
}

// -- barriers of some warps --

DEVICE void group_sync(u32 id, u32 count HERE) { emu::machine->async.meet(id, count, true, at_); }
DEVICE void group_arrive(u32 id, u32 count HERE) { emu::machine->async.meet(id, count, false, at_); }

// -- registers of a warpgroup's threads: the host has enough --

template <int N> DEVICE void take_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N> DEVICE void give_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }

// -- products of a warpgroup --

template <class T, int N, class F> DEVICE void each_lock(Reg<T, N>& r, F f) { f(r.lock); }
template <class R, int N, class F> DEVICE void each_lock(R (&r)[N], F f) {
    for (R& x : r) each_lock(x, f);
}

template <class... Rs> DEVICE void wgmma_fence(Rs&... registers) {
    (each_lock(registers, [](emu::Lock& lock) { lock.fenced = true; }), ...);
}
DEVICE void wgmma_commit() {
    emu::Thread& me = emu::machine->me();
    me.product_groups.push_back(std::move(me.products));
    me.products.clear();
}
template <int N> DEVICE void wgmma_wait(HERE_ONLY) { emu::wait_products(N, at_); }
template <class R> DEVICE void pin(R& registers HERE) {
    each_lock(registers, [&](emu::Lock& lock) {
        if (lock.products) {
            emu::machine->fail(thread(), at_, "in flight: the product in line %u has not been waited for", lock.line);
        }
        lock.away = false;
    });
}

// Hands registers to a product. Their last access must come before a wgmma_fence that names them.
DEVICE void send(emu::Lock& lock, Loc at) {
    if (!lock.fenced) {
        emu::machine->fail(thread(), at,
                           "unfenced: a product's registers are not in a wgmma_fence since their last touch");
    }
    lock.away = true;
    lock.products++;
    lock.line = at.line();
}
template <int R> DEVICE emu::Product product(Reg<float, R>& d, u64 b, bool add, bool across, Loc at) {
    // Sums that an earlier product still writes have no values yet.
    for (float x : d.v) {
        if (add && !d.lock.products) set(x, at);
    }
    if (!add) pin(d, at), d.lock.fenced = true;
    send(d.lock, at);
    return {at, d.v, &d.lock, nullptr, {}, 0, b, 2 * R, add, false, across};
}
template <bool ACROSS, bool LEFT_ACROSS = false, int R> DEVICE void wgmma(Reg<float, R>& d, u64 a, u64 b HERE) {
    emu::Product p = product(d, b, true, ACROSS, at_);
    p.a_at = a;
    p.a_across = LEFT_ACROSS;
    emu::issue_product(p);
}
template <bool ACROSS, bool LEFT_ACROSS = false, int R> DEVICE void wgmma_new(Reg<float, R>& d, u64 a, u64 b HERE) {
    emu::Product p = product(d, b, false, ACROSS, at_);
    p.a_at = a;
    p.a_across = LEFT_ACROSS;
    emu::issue_product(p);
}
template <bool ACROSS, int R> DEVICE void wgmma(Reg<float, R>& d, Reg<u32, 4>& a, u64 b HERE) {
    for (u32 x : a.v) set(x, at_);
    emu::Product p = product(d, b, true, ACROSS, at_);
    send(a.lock, at_);
    p.a_lock = &a.lock;
    memcpy(p.a, a.v, sizeof p.a);
    emu::issue_product(p);
}
