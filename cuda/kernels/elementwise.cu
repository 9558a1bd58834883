// Elementwise casts, adds, factors and fills, checksums, and the sum of squares in a fixed order. The kernels use
// grid-stride loops.
#include "args.cuh"
#include "common.cuh"

// The first of this thread's elements, `each` at a time, the grid stride, and the elements left (at most eight).
DEVICE u64 first(u32 each) { return (static_cast<u64>(block()) * threads() + thread()) * each; }
DEVICE u64 stride(u32 each) { return static_cast<u64>(blocks()) * threads() * each; }
DEVICE u32 left(u64 n, u64 i) { return n - i < 8 ? static_cast<u32>(n - i) : 8; }

KERNEL(round_bf16, Round, 256) {
    bool wide_x = aligned(a.x), wide_y = aligned(a.y);
    for (u64 i = first(8); i < a.y.n; i += stride(8)) {
        u32 n = left(a.y.n, i);
        V16 x = load4(a.x, i, n, wide_x), next = load4(a.x, i + 4, n > 4 ? n - 4 : 0, wide_x), y;
        UNROLL for (int k = 0; k < 2; k++) {
            y.w[k] = pack2(f32_of(x.w[2 * k]), f32_of(x.w[2 * k + 1]));
            y.w[k + 2] = pack2(f32_of(next.w[2 * k]), f32_of(next.w[2 * k + 1]));
        }
        store8(a.y, i, n, wide_y, y);
    }
}

KERNEL(widen_bf16, Widen, 256) {
    bool wide_x = aligned(a.x), wide_y = aligned(a.y);
    for (u64 i = first(4); i < a.y.n; i += stride(4)) {
        u32 n = left(a.y.n, i);
        V8 x = load4_rounded(a.x, i, n, wide_x);
        V16 y;
        UNROLL for (int k = 0; k < 2; k++) {
            y.w[2 * k] = bits_of(low(x.w[k]));
            y.w[2 * k + 1] = bits_of(high(x.w[k]));
        }
        store4(a.y, i, n, wide_y, y);
    }
}

KERNEL(add_bf16, Add, 256) {
    bool wide_x = aligned(a.x), wide_y = aligned(a.y);
    for (u64 i = first(8); i < a.x.n; i += stride(8)) {
        u32 n = left(a.x.n, i);
        V16 x = load8(a.x, i, n, wide_x), y = load8(a.y, i, n, wide_y);
        UNROLL for (int k = 0; k < 4; k++) {
            x.w[k] = pack2(low(x.w[k]) + low(y.w[k]), high(x.w[k]) + high(y.w[k]));
        }
        store8(a.x, i, n, wide_x, x);
    }
}

KERNEL(scale_bf16, Scale, 256) {
    bool wide = aligned(a.x);
    for (u64 i = first(8); i < a.x.n; i += stride(8)) {
        u32 n = left(a.x.n, i);
        V16 x = load8(a.x, i, n, wide);
        UNROLL for (int k = 0; k < 4; k++) x.w[k] = pack2(low(x.w[k]) * a.factor, high(x.w[k]) * a.factor);
        store8(a.x, i, n, wide, x);
    }
}

KERNEL(copy_f32, Copy, 256) {
    bool wide_from = aligned(a.from), wide_to = aligned(a.to);
    for (u64 i = first(4); i < a.to.n; i += stride(4)) {
        u32 n = left(a.to.n, i);
        V16 v = {};
        if (a.from.n) v = load4(a.from, i, n, wide_from);
        store4(a.to, i, n, wide_to, v);
    }
}

// One partial sum per warp, in f64. No shared memory.
KERNEL(squares, SumSquares, 256) {
    bool wide = aligned(a.x);
    double sum = 0;
    for (u64 i = first(4); i < a.x.n; i += stride(4)) {
        V16 x = load4(a.x, i, left(a.x.n, i), wide);
        UNROLL for (int k = 0; k < 4; k++) {
            double v = f32_of(x.w[k]);
            sum = fmadd(v, v, sum);
        }
    }
    sum = warp_sum(sum);
    if (thread() % 32 == 0) st(a.parts, block() * (threads() / 32) + thread() / 32, sum);
}

// Each element of out += its partial sums, which are consecutive. One warp per element: each lane sums a range of
// them in order, then the lanes are summed.
KERNEL(squares_total, SumSquares, 32) {
    u64 parts = a.parts.n / a.out.n, each = (parts + 31) / 32, begin = thread() * each;
    double sum = 0;
    for (u64 i = begin; i < begin + each && i < parts; i++) sum += ld(a.parts, block() * parts + i);
    sum = warp_sum(sum);
    if (thread() == 0) st(a.out, block(), ld(a.out, block()) + static_cast<float>(sum));
}

// What element i adds to a checksum, as `mixed` in engine/src/backend/mod.rs.
DEVICE u32 mixed(u32 bits, u64 i) {
    u32 h = bits ^ static_cast<u32>(i) * 0x9e3779b9u;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

KERNEL(checksum_f32, ChecksumF32, 256) {
    bool wide = aligned(a.x);
    u32 sum = 0;
    for (u64 i = first(4); i < a.x.n; i += stride(4)) {
        u32 n = left(a.x.n, i);
        V16 x = load4(a.x, i, n, wide);
        UNROLL for (u32 k = 0; k < 4; k++) sum += k < n ? mixed(x.w[k], i + k) : 0;
    }
    sum = warp_sum(sum);
    u32 i = block() * threads() + thread();
    if (i % 32 == 0) st(a.parts, i / 32, sum);
}

KERNEL(checksum_bf16, ChecksumBf16, 256) {
    bool wide = aligned(a.x);
    u32 sum = 0;
    for (u64 i = first(8); i < a.x.n; i += stride(8)) {
        u32 n = left(a.x.n, i);
        V16 x = load8(a.x, i, n, wide);
        UNROLL for (u32 k = 0; k < 8; k++) sum += k < n ? mixed(x.w[k / 2] >> 16 * (k % 2) & 0xffff, i + k) : 0;
    }
    sum = warp_sum(sum);
    u32 i = block() * threads() + thread();
    if (i % 32 == 0) st(a.parts, i / 32, sum);
}
