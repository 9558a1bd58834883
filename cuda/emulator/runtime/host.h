// The host half of `prim.cuh`: the same names, each a call into the emulator, with the source line of the caller.
#pragma once
#include "warp.h"
#include <cmath>
#include <cstring>

using emu::Loc;

#define HERE , Loc at_ = Loc::current()
#define HERE_ONLY Loc at_ = Loc::current()
#define AT , at_
#define AT_ONLY at_
#define DEVICE [[maybe_unused]] static inline
#define UNROLL
#define ROLLED
#define KERNEL(name, Args, ...)                                                                                        \
    static void name##_body(const Args& a);                                                                            \
    static const emu::Entry name##_entry(#name, most_threads(__VA_ARGS__), sizeof(Args),                               \
                                         [](const void* a) { name##_body(*static_cast<const Args*>(a)); });            \
    static void name##_body([[maybe_unused]] const Args& a)

// The thread bound of a kernel's declaration; its second number, blocks on a multiprocessor, matters to a device only.
constexpr u32 most_threads(u32 threads, u32 = 1) { return threads; }

// The content of registers before they are set: a NaN, which arithmetic propagates.
constexpr u32 POISON = 0xffdeadbeu;

DEVICE float f32_of(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE u32 bits_of(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
DEVICE void set(u32 v, Loc at) {
    if (v == POISON) emu::machine->fail(emu::machine->index(), at, "unset: a register is used that was never set");
}
DEVICE void set(float v, Loc at) { set(bits_of(v), at); }
DEVICE void set(const V8& v, Loc at) {
    for (u32 w : v.w) set(w, at);
}
DEVICE void set(const V16& v, Loc at) {
    for (u32 w : v.w) set(w, at);
}
template <class T> DEVICE void set(const T&, Loc) {}

// An index, and the source line that uses it.
struct Index {
    int i;
    Loc loc;
    Index(int i, Loc loc = Loc::current()) : i(i), loc(loc) {}
};

template <class T, int N> struct Reg {
    static_assert(sizeof(T) == 4, "a register has four bytes");
    T v[N];
    mutable emu::Lock lock;
    Reg() {
        for (T& x : v) memcpy(&x, &POISON, 4);
    }
    T& operator[](Index i) { return v[check(i)]; }
    const T& operator[](Index i) const { return v[check(i)]; }
    int check(Index i) const {
        if (i.i < 0 || i.i >= N) emu::machine->fail(emu::machine->index(), i.loc, "register %d of %d", i.i, N);
        if (lock.away) touched_away(i.loc);
        lock.fenced = false;
        return i.i;
    }
    void touched_away(Loc loc) const {
        const char* why = lock.products ? "before it was waited for" : "and nothing pins them after the wait";
        emu::machine->fail(emu::machine->index(), loc, "in flight: registers of the product in line %u are touched, %s",
                           lock.line, why);
    }
};

// -- indices --

DEVICE u32 thread() { return emu::machine->index(); }
DEVICE u32 threads() { return emu::machine->size(); }
DEVICE u32 block() { return emu::machine->block[0]; }
DEVICE u32 block_y() { return emu::machine->block[1]; }
DEVICE u32 block_z() { return emu::machine->block[2]; }
DEVICE u32 blocks() { return emu::machine->launch.grid[0]; }

DEVICE u32 fresh(u32 v) { return v; }

// -- numbers --

DEVICE float fmadd(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double fmadd(double a, double b, double c) { return fma(a, b, c); }
DEVICE float div_rn(float a, float b) { return a / b; }
DEVICE float sqrt_rn(float a) { return sqrtf(a); }
DEVICE float ln(float a) { return logf(a); }
// Like `.ftz`: subnormal inputs and results become zero.
DEVICE float flushed(float a) { return fabsf(a) < 0x1p-126f ? copysignf(0.0f, a) : a; }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE u32 larger2(u32 a, u32 b) {
    auto half = [&](u32 shift) {
        float larger_one = larger(f32_of(a >> shift << 16), f32_of(b >> shift << 16));
        return larger_one != larger_one ? 0x7fffu : bits_of(larger_one) >> 16;
    };
    return half(0) | half(16) << 16;
}
DEVICE float fast_exp2(float a) { return flushed(exp2f(flushed(a))); }
DEVICE float fast_log2(float a) { return log2f(flushed(a)); }
DEVICE float fast_rcp(float a) { return flushed(1.0f / flushed(a)); }
DEVICE float fast_rsqrt(float a) { return flushed(1.0f / sqrtf(flushed(a))); }
DEVICE u32 bf16_of(float x) {
    u32 bits = bits_of(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack2(float low, float high HERE) {
    set(low, at_);
    set(high, at_);
    return bf16_of(low) | bf16_of(high) << 16;
}
DEVICE u32 f16_of(float x) {
    u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    float size = fabsf(x);
    if (x != x) return 0x7fffu;
    if (size >= 65520.0f) return sign | 0x7c00u;
    // Below 2^-14 all f16 numbers are equally spaced.
    if (size < 0x1p-14f) return sign | static_cast<u32>(nearbyintf(size * 0x1p24f));
    bits = bits_of(size);
    return sign | (((bits + 0xfffu + (bits >> 13 & 1)) >> 13) - (112u << 10));
}
DEVICE float of_f16(u32 bits) {
    u32 exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 0    ? static_cast<float>(fraction) * 0x1p-24f
                 : exponent == 31 ? f32_of(0x7f800000u | fraction << 13)
                                  : f32_of((exponent + 112) << 23 | fraction << 13);
    return bits & 0x8000u ? -size : size;
}
DEVICE u32 pack2_f16(float low, float high HERE) {
    set(low, at_);
    set(high, at_);
    return f16_of(low) | f16_of(high) << 16;
}
DEVICE float low_f16(u32 pair) { return of_f16(pair & 0xffffu); }
DEVICE float high_f16(u32 pair) { return of_f16(pair >> 16); }

// -- global memory --

template <class T> DEVICE void inside(View<T> x, u64 i, u64 n, Loc at) {
    if (i + n > x.n || i + n < n) {
        emu::machine->fail(emu::machine->index(), at, "out of bounds: elements %llu .. %llu of %llu", i, i + n, x.n);
    }
}
template <class T> DEVICE void wide(View<T> x, u64 i, u32 bytes, Loc at) {
    inside(x, i, bytes / sizeof(T), at);
    if (reinterpret_cast<u64>(x.p + i) % bytes) {
        emu::machine->fail(emu::machine->index(), at, "misaligned: %u bytes from element %llu on", bytes, i);
    }
}
template <class T> DEVICE T ld(View<T> x, u64 i HERE) {
    inside(x, i, 1, at_);
    return x.p[i];
}
template <class T> DEVICE void st(View<T> x, u64 i, T v HERE) {
    inside(x, i, 1, at_);
    set(v, at_);
    x.p[i] = v;
}
template <class T> DEVICE V16 ld16(View<T> x, u64 i HERE) {
    wide(x, i, 16, at_);
    V16 v;
    memcpy(&v, x.p + i, 16);
    return v;
}
template <class T> DEVICE void st16(View<T> x, u64 i, V16 v HERE) {
    wide(x, i, 16, at_);
    set(v, at_);
    memcpy(x.p + i, &v, 16);
}
template <class T> DEVICE void st16_whole(View<T> x, u64 i, V16 v HERE) { st16(x, i, v AT); }
template <class T> DEVICE V8 ld8(View<T> x, u64 i HERE) {
    wide(x, i, 8, at_);
    V8 v;
    memcpy(&v, x.p + i, 8);
    return v;
}
template <class T> DEVICE void st8(View<T> x, u64 i, V8 v HERE) {
    wide(x, i, 8, at_);
    set(v, at_);
    memcpy(x.p + i, &v, 8);
}

// -- the block --

DEVICE void sync(HERE_ONLY) { emu::machine->wait(emu::At::barrier, at_); }
DEVICE void warp_sync(HERE_ONLY) {
    emu::WarpOp op{emu::WarpOp::sync};
    emu::together(op, at_);
}
DEVICE u32 shfl_bits(u32 v, u32 lane HERE) {
    emu::WarpOp op{emu::WarpOp::shuffle, v, lane};
    emu::together(op, at_);
    return op.value;
}
DEVICE u32 shfl(u32 v, u32 lane HERE) {
    set(v, at_);
    return shfl_bits(v, lane AT);
}
DEVICE u32 shfl_xor(u32 v, u32 mask HERE) { return shfl(v, thread() % 32 ^ mask AT); }
// The words of an f64 may have any bits, those of an unset register too.
DEVICE double shfl_xor(double v, u32 mask HERE) {
    Words bits = {v};
    for (u32& w : bits.w) w = shfl_bits(w, thread() % 32 ^ mask AT);
    return bits.v;
}
DEVICE bool warp_any(bool so HERE) {
    u32 any = so;
    for (u32 mask = 16; mask; mask /= 2) any |= shfl_xor(any, mask AT);
    return any;
}

// -- shared memory --

DEVICE u32 shared_base() { return emu::Shared::BASE; }
DEVICE u32 lds(u32 at HERE) {
    u32 v;
    emu::machine->shared.read(thread(), at, &v, 4, at_);
    return v;
}
DEVICE void sts(u32 at, u32 v HERE) {
    set(v, at_);
    emu::machine->shared.write(thread(), at, &v, 4, at_);
}
DEVICE double lds8(u32 at HERE) {
    double v;
    emu::machine->shared.read(thread(), at, &v, 8, at_);
    return v;
}
DEVICE void sts8(u32 at, double v HERE) { emu::machine->shared.write(thread(), at, &v, 8, at_); }
DEVICE V16 lds16(u32 at HERE) {
    V16 v;
    emu::machine->shared.read(thread(), at, &v, 16, at_);
    return v;
}
DEVICE void sts16(u32 at, V16 v HERE) {
    set(v, at_);
    emu::machine->shared.write(thread(), at, &v, 16, at_);
}

template <class T> DEVICE void cp_async16(u32 to, View<T> x, u64 i, u32 bytes HERE) {
    if (bytes > 16) emu::machine->fail(thread(), at_, "a cp.async of %u bytes", bytes);
    inside(x, bytes ? i : 0, (bytes + sizeof(T) - 1) / sizeof(T), at_);
    auto from = reinterpret_cast<const char*>(bytes ? x.p + i : x.p);
    if (reinterpret_cast<u64>(from) % 16) {
        emu::machine->fail(thread(), at_, "misaligned: a cp.async from element %llu on", i);
    }
    emu::machine->report.copied += bytes;
    emu::Copying copy{to, from, bytes};
    emu::machine->shared.fly(thread(), copy, at_);
    emu::machine->threads[thread()].open.push_back(copy);
}
DEVICE void cp_commit() {
    auto& me = emu::machine->threads[thread()];
    me.groups.push_back(std::move(me.open));
    me.open.clear();
}
// A copy takes effect here, at the wait, so that reads before the wait are seen.
template <int N> DEVICE void cp_wait(HERE_ONLY) {
    auto& me = emu::machine->threads[thread()];
    while (me.groups.size() > N) {
        for (const auto& copy : me.groups.front()) emu::machine->shared.land(thread(), copy, at_);
        me.groups.erase(me.groups.begin());
    }
}

// -- tensor cores --

DEVICE void ldmatrix(Reg<u32, 4>& d, u32 at HERE) {
    emu::WarpOp op{emu::WarpOp::ldmatrix, at, 0, d.v};
    emu::together(op, at_);
}
DEVICE void ldmatrix_trans(Reg<u32, 4>& d, u32 at HERE) {
    emu::WarpOp op{emu::WarpOp::ldmatrix_trans, at, 0, d.v};
    emu::together(op, at_);
}
DEVICE void mma(Reg<float, 4>& c, const Reg<u32, 4>& a, u32 b0, u32 b1 HERE) {
    emu::WarpOp op{emu::WarpOp::mma, 0, 0, nullptr, c.v, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    for (float x : c.v) set(x, at_);
    for (u32 x : a.v) set(x, at_);
    set(b0, at_);
    set(b1, at_);
    emu::together(op, at_);
}
