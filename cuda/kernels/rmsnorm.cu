// RMSNorm: y = x rstd w with rstd = 1 / sqrt(mean(x^2) + eps), and dx = rstd (dy w - x rstd^2 mean(dy w x)).
// A block processes a row, which it reads once: each thread keeps its elements in registers between the sum and the
// scaling. The weight's gradient is summed in registers over the rows of a block, then over the blocks in order.
#include "args.cuh"
#include "common.cuh"

// Vectors of eight elements that a thread keeps: 1024 threads cover the maximum of 16384 columns. The backward pass
// needs more registers: it has at most 512 threads, and a second kernel that keeps four vectors.
constexpr int KEPT = 2;

// The first column of this thread's vector k.
DEVICE u32 column(int k) { return (k * threads() + thread()) * 8; }

DEVICE V16 scaled(const V16& x, float rstd, const V16& w) {
    V16 y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.w[i] = pack2(low(x.w[i]) * rstd * low(w.w[i]), high(x.w[i]) * rstd * high(w.w[i]));
    }
    return y;
}

DEVICE V16 added(const V16& x, const V16& y) {
    V16 sum;
    UNROLL for (int i = 0; i < 4; i++) {
        sum.w[i] = pack2(low(x.w[i]) + low(y.w[i]), high(x.w[i]) + high(y.w[i]));
    }
    return sum;
}

// Adds the row's residual if h is not empty, keeps the row, and returns this thread's sum of squares.
DEVICE float read_row(const RmsNorm& a, u64 start, Reg<u32, 4 * KEPT>& kept) {
    bool wide_x = rows_aligned(a.x, a.d), wide_h = rows_aligned(a.h, a.d);
    float sum = 0;
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 x = load8(a.x, start + i, a.d - i, wide_x);
        if (a.h.n) {
            x = added(x, load8(a.h, start + i, a.d - i, wide_h));
            store8(a.h, start + i, a.d - i, wide_h, x);
        }
        UNROLL for (int j = 0; j < 4; j++) {
            sum = fmadd(low(x.w[j]), low(x.w[j]), sum);
            sum = fmadd(high(x.w[j]), high(x.w[j]), sum);
            kept[4 * k + j] = x.w[j];
        }
    }
    return sum;
}

DEVICE void write_row(const RmsNorm& a, u64 start, const Reg<u32, 4 * KEPT>& kept, float rstd) {
    bool wide_w = aligned(a.w), wide_y = rows_aligned(a.y, a.d);
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 x = {kept[4 * k], kept[4 * k + 1], kept[4 * k + 2], kept[4 * k + 3]};
        V16 w = load8(a.w, i, a.d - i, wide_w);
        store8(a.y, start + i, a.d - i, wide_y, scaled(x, rstd, w));
    }
}

// y and rstd; if h is not empty, h += x first. Shared memory: 128 bytes.
KERNEL(rmsnorm, RmsNorm, 1024) {
    u64 start = static_cast<u64>(block()) * a.d;
    Reg<u32, 4 * KEPT> kept;
    float sum = block_sum(read_row(a, start, kept), shared_base());
    float rstd = div_rn(1.0f, sqrt_rn(div_rn(sum, static_cast<float>(a.d)) + a.eps));
    if (thread() == 0) st(a.rstd, block(), rstd);
    write_row(a, start, kept, rstd);
}

// Recomputes y from x and rstd.
KERNEL(rmsnorm_recompute, RmsNorm, 1024) {
    u64 start = static_cast<u64>(block()) * a.d;
    Reg<u32, 4 * KEPT> kept;
    read_row(a, start, kept);
    write_row(a, start, kept, ld(a.rstd, block()));
}

// dx of one row, which stays in registers; accumulates this thread's columns of the weight's gradient.
template <int K>
DEVICE void gradient(const RmsNormBwd& a, u64 row, u32 shared, const Reg<u32, 4 * K>& w, Reg<float, 8 * K>& dw) {
    // One flag for all three, because registers are scarce here.
    bool wide = rows_aligned(a.x, a.d) && aligned(a.dy) && aligned(a.dres);
    float rstd = ld(a.rstd, row), dot = 0;
    Reg<u32, 4 * K> xs, dys;
    UNROLL for (int k = 0; k < K; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 x = load8(a.x, row * a.d + i, a.d - i, wide), dy = load8(a.dy, row * a.d + i, a.d - i, wide);
        UNROLL for (int j = 0; j < 4; j++) {
            float low_dy = low(dy.w[j]), high_dy = high(dy.w[j]), low_x = low(x.w[j]), high_x = high(x.w[j]);
            dot = fmadd(low_dy * low(w[4 * k + j]), low_x, dot);
            dot = fmadd(high_dy * high(w[4 * k + j]), high_x, dot);
            dw[8 * k + 2 * j] = fmadd(low_dy * rstd, low_x, dw[8 * k + 2 * j]);
            dw[8 * k + 2 * j + 1] = fmadd(high_dy * rstd, high_x, dw[8 * k + 2 * j + 1]);
            xs[4 * k + j] = x.w[j];
            dys[4 * k + j] = dy.w[j];
        }
    }
    float c = rstd * rstd * div_rn(block_sum(dot, shared), static_cast<float>(a.d));
    UNROLL for (int k = 0; k < K; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 res = {}, dx;
        if (a.dres.n) res = load8(a.dres, row * a.d + i, a.d - i, wide);
        UNROLL for (int j = 0; j < 4; j++) {
            u32 x = xs[4 * k + j], dy = dys[4 * k + j], ws = w[4 * k + j];
            float first = fmadd(-c, low(x), low(dy) * low(ws)), second = fmadd(-c, high(x), high(dy) * high(ws));
            dx.w[j] = pack2(fmadd(rstd, first, low(res.w[j])), fmadd(rstd, second, high(res.w[j])));
        }
        store8(a.dy, row * a.d + i, a.d - i, wide, dx);
    }
}

// Each block loops over rows with a grid stride and writes a partial sum of the weight's gradient. Shared memory: 256
// bytes, in two halves that rows alternate between, so that one barrier per row is enough.
template <int K> DEVICE void gradients(const RmsNormBwd& a) {
    Reg<u32, 4 * K> w;
    Reg<float, 8 * K> dw;
    bool wide = aligned(a.w), wide_parts = a.d % 4 == 0 && aligned(a.parts);
    UNROLL for (int k = 0; k < K; k++) {
        V16 v = {};
        if (column(k) < a.d) v = load8(a.w, column(k), a.d - column(k), wide);
        UNROLL for (int j = 0; j < 4; j++) w[4 * k + j] = v.w[j];
        UNROLL for (int j = 0; j < 8; j++) dw[8 * k + j] = 0;
    }
    u32 half = 0;
    for (u64 row = block(); row < a.rows; row += blocks()) {
        gradient<K>(a, row, shared_base() + half, w, dw);
        half ^= 128;
    }
    UNROLL for (int k = 0; k < 2 * K; k++) {
        u32 i = column(k / 2) + k % 2 * 4;
        if (i >= a.d) continue;
        V16 v = {bits_of(dw[4 * k]), bits_of(dw[4 * k + 1]), bits_of(dw[4 * k + 2]), bits_of(dw[4 * k + 3])};
        store4(a.parts, static_cast<u64>(block()) * a.d + i, a.d - i, wide_parts, v);
    }
}

// Up to 8192 columns, and up to 16384.
KERNEL(rmsnorm_bwd, RmsNormBwd, 512) { gradients<2>(a); }
KERNEL(rmsnorm_bwd_long, RmsNormBwd, 512) { gradients<4>(a); }

// to += the rows of parts: a block of 8 warps processes 32 columns; each warp sums a range of rows in order, then the
// warps are summed in order. Shared memory: 1024 bytes.
KERNEL(sum_rows, SumRows, 256) {
    u32 lane = thread() % 32, warp = thread() / 32, col = block() * 32 + lane;
    u32 each = (a.rows + 7) / 8, first = warp * each, last = first + each < a.rows ? first + each : a.rows;
    float sum = 0;
    if (col < a.cols) {
        for (u32 row = first; row < last; row++) sum += ld(a.parts, static_cast<u64>(row) * a.cols + col);
    }
    sts(shared_base() + thread() * 4, bits_of(sum));
    sync();
    if (warp > 0 || col >= a.cols) return;
    float total = 0;
    for (u32 w = 0; w < 8; w++) total += f32_of(lds(shared_base() + (w * 32 + lane) * 4));
    st(a.to, col, ld(a.to, col) + total);
}
