// RMSNorm: y = x rstd w with rstd = 1 / sqrt(mean(x^2) + eps), and dx = rstd (dy w - x rstd^2 mean(dy w x)); w is the
// weight plus an offset.
// A block processes a row, which it reads once: each thread keeps its elements in registers between the sum and the
// scaling. The weight's gradient is summed in registers over the rows of a block, then over the blocks in order.
#include "args.cuh"
#include "common.cuh"

// Vectors of eight elements that a thread keeps: 1024 threads cover the maximum of 16384 columns.
constexpr int KEPT = 2;

// The first column of this thread's vector k.
DEVICE u32 column(int k) { return (k * threads() + thread()) * 8; }

DEVICE V16 scaled(const V16& x, float rstd, const V16& w, float offset) {
    V16 y;
    UNROLL for (int i = 0; i < 4; i++) {
        float first = low(x.w[i]) * rstd * (offset + low(w.w[i]));
        y.w[i] = pack2(first, high(x.w[i]) * rstd * (offset + high(w.w[i])));
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
        store8(a.y, start + i, a.d - i, wide_y, scaled(x, rstd, w, a.offset));
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

// -- backward --

// The sum of dy w x, continued by two elements.
DEVICE float with_pair(float dot, u32 x, u32 dy, u32 w, float offset) {
    dot = fmadd(low(dy) * (offset + low(w)), low(x), dot);
    return fmadd(high(dy) * (offset + high(w)), high(x), dot);
}

// Two elements of dx + dres. `c`: rstd^2 mean(dy w x).
DEVICE u32 dx_pair(u32 x, u32 dy, u32 w, u32 dres, float offset, float rstd, float c) {
    float first = fmadd(-c, low(x), low(dy) * (offset + low(w)));
    float second = fmadd(-c, high(x), high(dy) * (offset + high(w)));
    return pack2(fmadd(rstd, first, low(dres)), fmadd(rstd, second, high(dres)));
}

struct RowBwd {
    float rstd;
    Reg<u32, 4 * KEPT> x, dy, dres;
};

// Loads all of a row before the first arithmetic, so that a thread waits for memory once a row.
DEVICE void read_row(const RmsNormBwd& a, u64 row, RowBwd& r) {
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        V16 x = {}, dy = {}, dres = {};
        if (i < a.d) {
            x = ld16(a.x, row * a.d + i);
            dy = ld16(a.dy, row * a.d + i);
            if (a.dres.n) dres = ld16(a.dres, row * a.d + i);
        }
        UNROLL for (int j = 0; j < 4; j++) {
            r.x[4 * k + j] = x.w[j];
            r.dy[4 * k + j] = dy.w[j];
            r.dres[4 * k + j] = dres.w[j];
        }
    }
    // `fresh` keeps the compiler from moving it to a uniform register, for which it would wait before it loads more.
    r.rstd = f32_of(fresh(bits_of(ld(a.rstd, row))));
}

// dx of one row; accumulates this thread's columns of the weight's gradient, dw += dy x rstd. With `fresh` a pair is
// unpacked where it is needed: kept as floats, w, dy w and x would take twice the registers.
DEVICE void gradient(const RmsNormBwd& a, u64 row, u32 shared, const Reg<u32, 4 * KEPT>& w, Reg<float, 8 * KEPT>& dw) {
    RowBwd r;
    read_row(a, row, r);
    float dot = 0;
    UNROLL for (int j = 0; j < 4 * KEPT; j++) {
        u32 x = r.x[j], dy = r.dy[j];
        dot = with_pair(dot, x, dy, fresh(w[j]), a.offset);
        dw[2 * j] = fmadd(low(dy) * r.rstd, low(x), dw[2 * j]);
        dw[2 * j + 1] = fmadd(high(dy) * r.rstd, high(x), dw[2 * j + 1]);
    }
    float c = r.rstd * r.rstd * div_rn(block_sum(dot, shared), static_cast<float>(a.d));
    UNROLL for (int k = 0; k < KEPT; k++) {
        if (column(k) >= a.d) continue;
        V16 dx;
        UNROLL for (int j = 0; j < 4; j++) {
            int at = 4 * k + j;
            dx.w[j] = dx_pair(fresh(r.x[at]), fresh(r.dy[at]), fresh(w[at]), r.dres[at], a.offset, r.rstd, c);
        }
        st16(a.dy, row * a.d + column(k), dx);
    }
}

// Overwrites dy with dx (+ dres). Each block loops over rows with a grid stride and writes a partial sum of the
// weight's gradient. d is a multiple of 8, and everything is aligned to 16 bytes. Shared memory: 256 bytes, in two
// halves that rows alternate between, so that one barrier per row is enough.
KERNEL(rmsnorm_bwd, RmsNormBwd, 1024) {
    Reg<u32, 4 * KEPT> w;
    Reg<float, 8 * KEPT> dw;
    UNROLL for (int k = 0; k < KEPT; k++) {
        V16 v = {};
        if (column(k) < a.d) v = ld16(a.w, column(k));
        UNROLL for (int j = 0; j < 4; j++) w[4 * k + j] = v.w[j];
        UNROLL for (int j = 0; j < 8; j++) dw[8 * k + j] = 0;
    }
    u32 half = 0;
    for (u64 row = block(); row < a.rows; row += blocks()) {
        gradient(a, row, shared_base() + half, w, dw);
        half ^= 128;
    }
    UNROLL for (int k = 0; k < 2 * KEPT; k++) {
        u32 i = column(k / 2) + k % 2 * 4;
        if (i >= a.d) continue;
        V16 v = {bits_of(dw[4 * k]), bits_of(dw[4 * k + 1]), bits_of(dw[4 * k + 2]), bits_of(dw[4 * k + 3])};
        st16(a.parts, static_cast<u64>(block()) * a.d + i, v);
    }
}

// Two elements of this block's partial sum of dw, which is kept in memory; starts it at the block's first row.
DEVICE void add_to_parts(const RmsNormBwd& a, u64 row, u32 i, u32 x, u32 dy, float rstd) {
    u64 at = static_cast<u64>(block()) * a.d + i;
    bool first = row == block();
    st(a.parts, at, fmadd(low(dy) * rstd, low(x), first ? 0.0f : ld(a.parts, at)));
    if (i + 1 < a.d) st(a.parts, at + 1, fmadd(high(dy) * rstd, high(x), first ? 0.0f : ld(a.parts, at + 1)));
}

// The same bits for any d and any alignment, slower: element by element, and read again where it is needed again.
KERNEL(rmsnorm_bwd_unaligned, RmsNormBwd, 1024) {
    u32 half = 0;
    for (u64 row = block(); row < a.rows; row += blocks()) {
        u64 start = row * a.d;
        float rstd = ld(a.rstd, row), dot = 0;
        for (u32 i = thread() * 8; i < a.d; i += threads() * 8) {
            u32 n = a.d - i;
            V16 x = load8(a.x, start + i, n, false), dy = load8(a.dy, start + i, n, false), w = load8(a.w, i, n, false);
            UNROLL for (u32 j = 0; j < 4; j++) {
                dot = with_pair(dot, x.w[j], dy.w[j], w.w[j], a.offset);
                if (2 * j < n) add_to_parts(a, row, i + 2 * j, x.w[j], dy.w[j], rstd);
            }
        }
        float c = rstd * rstd * div_rn(block_sum(dot, shared_base() + half), static_cast<float>(a.d));
        for (u32 i = thread() * 8; i < a.d; i += threads() * 8) {
            u32 n = a.d - i;
            V16 x = load8(a.x, start + i, n, false), dy = load8(a.dy, start + i, n, false), w = load8(a.w, i, n, false);
            V16 dres = {}, dx;
            if (a.dres.n) dres = load8(a.dres, start + i, n, false);
            UNROLL for (int j = 0; j < 4; j++) {
                dx.w[j] = dx_pair(x.w[j], dy.w[j], w.w[j], dres.w[j], a.offset, rstd, c);
            }
            store8(a.dy, start + i, n, false, dx);
        }
        half ^= 128;
    }
}

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
