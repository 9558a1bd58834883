// Helpers on top of the primitives: halves of packed words, vectors of eight elements with a correct tail,
// sums over a warp and over a block. No PTX here.
#pragma once
#include "prim.cuh"

DEVICE float infinity() { return f32_of(0x7f800000u); }
DEVICE float low(u32 pair) { return f32_of(pair << 16); }
DEVICE float high(u32 pair) { return f32_of(pair & 0xffff0000u); }
DEVICE float f32_of(bf16 x) { return f32_of(static_cast<u32>(x.bits) << 16); }
// Element i of eight.
DEVICE float pick8(const V16& v, int i) { return i & 1 ? high(v.w[i / 2]) : low(v.w[i / 2]); }

// The address of element i modulo 16 bytes.
template <class T> DEVICE u32 past16(View<T> x, u64 i) { return reinterpret_cast<u64>(x.p + i) % 16; }
template <class T> DEVICE bool aligned(View<T> x) { return past16(x, 0) == 0; }
template <class T> DEVICE bool rows_aligned(View<T> x, u32 d) { return d % 8 == 0 && aligned(x); }

// Loads bf16 from i on into the words of v, which are zero: the first n of at most N.
template <int N, class T, class V> DEVICE void load_tail(View<T> x, u64 i, u32 n, V& v HERE) {
    UNROLL for (u32 k = 0; k < N; k++) {
        if (k < n) v.w[k / 2] |= static_cast<u32>(ld(x, i + k AT).bits) << 16 * (k % 2);
    }
}
// Stores the first n of at most N bf16 in the words of v from i on.
template <int N, class V> DEVICE void store_tail(View<bf16> x, u64 i, u32 n, const V& v HERE) {
    UNROLL for (u32 k = 0; k < N; k++) {
        if (k < n) st(x, i + k, bf16{static_cast<u16>(v.w[k / 2] >> 16 * (k % 2))} AT);
    }
}

// Loads eight elements from i on, of which `n` exist; the others are zero. `wide`: element i is aligned to 16 bytes.
template <class T> DEVICE V16 load8(View<T> x, u64 i, u32 n, bool wide HERE) {
    if (wide && n >= 8) return ld16(x, i AT);
    V16 v = {};
    load_tail<8>(x, i, n, v AT);
    return v;
}
DEVICE void store8(View<bf16> x, u64 i, u32 n, bool wide, const V16& v HERE) {
    if (wide && n >= 8) return st16(x, i, v AT);
    store_tail<8>(x, i, n, v AT);
}

// The same as load8 and store8 for four f32.
template <class T> DEVICE V16 load4(View<T> x, u64 i, u32 n, bool wide HERE) {
    if (wide && n >= 4) return ld16(x, i AT);
    V16 v = {};
    UNROLL for (u32 k = 0; k < 4; k++) {
        if (k < n) v.w[k] = bits_of(ld(x, i + k AT));
    }
    return v;
}
DEVICE void store4(View<float> x, u64 i, u32 n, bool wide, const V16& v HERE) {
    if (wide && n >= 4) return st16(x, i, v AT);
    UNROLL for (u32 k = 0; k < 4; k++) {
        if (k < n) st(x, i + k, f32_of(v.w[k]) AT);
    }
}

// Loads four bf16 from i on, of which `n` exist; the others are zero. `wide`: element i is aligned to 8 bytes.
template <class T> DEVICE V8 load4_rounded(View<T> x, u64 i, u32 n, bool wide HERE) {
    if (wide && n >= 4) return ld8(x, i AT);
    V8 v = {};
    load_tail<4>(x, i, n, v AT);
    return v;
}
// Stores four bf16 from i on, of which `n` exist. `wide`: element i is aligned to 8 bytes.
DEVICE void store4_rounded(View<bf16> x, u64 i, u32 n, bool wide, u32 low, u32 high HERE) {
    if (wide && n >= 4) return st8(x, i, V8{low, high} AT);
    store_tail<4>(x, i, n, V8{low, high} AT);
}

DEVICE float shfl_xor(float v, u32 mask HERE) { return f32_of(shfl_xor(bits_of(v), mask AT)); }

// The sum over the warp, on every lane.
template <class T> DEVICE T warp_sum(T v HERE) {
    UNROLL for (u32 mask = 16; mask; mask /= 2) v += shfl_xor(v, mask AT);
    return v;
}

// The sum over the block, on every thread, in an order that depends only on the block's size. `at`: 128 bytes of
// shared memory that no thread uses before the call; they are free again after the next barrier.
DEVICE float block_sum(float v, u32 at HERE) {
    v = warp_sum(v AT);
    if (thread() % 32 == 0) sts(at + thread() / 32 * 4, bits_of(v) AT);
    sync(AT_ONLY);
    u32 lane = thread() % 32;
    return warp_sum(lane < threads() / 32 ? f32_of(lds(at + lane * 4 AT)) : 0.0f AT);
}
// The same in f64, with 256 bytes.
DEVICE double block_sum(double v, u32 at HERE) {
    v = warp_sum(v AT);
    if (thread() % 32 == 0) sts8(at + thread() / 32 * 8, v AT);
    sync(AT_ONLY);
    u32 lane = thread() % 32;
    return warp_sum(lane < threads() / 32 ? lds8(at + lane * 8 AT) : 0.0 AT);
}
