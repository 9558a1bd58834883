// RMSNorm of each head of q and k, then the rotation of rope.cu: y = R (x rstd w), rstd = 1 / sqrt(mean(x^2) + eps)
// over the head; v is copied. With g = R^T dy: dx = rstd (g w - x rstd^2 mean(g w x)), dw = sum of g x rstd over rows
// and heads. A few neighbouring lanes process a head, each eight pairs (x_j, x_{j + d/2}).
#include "args.cuh"
#include "common.cuh"

// The sum over the lanes of a head, on each of them. All lanes of the warp call this together.
DEVICE float head_sum(float v, u32 lanes HERE) {
    for (u32 mask = lanes / 2; mask; mask /= 2) v += shfl_xor(v, mask AT);
    return v;
}

// The sum of squares, continued by a vector.
DEVICE float squares(const V16& x, float sum) {
    UNROLL for (int i = 0; i < 4; i++) {
        sum = fmadd(low(x.w[i]), low(x.w[i]), sum);
        sum = fmadd(high(x.w[i]), high(x.w[i]), sum);
    }
    return sum;
}

DEVICE float rstd_of(float square, u32 dim, float eps) {
    return div_rn(1.0f, sqrt_rn(div_rn(square, static_cast<float>(dim)) + eps));
}

// Cosines and sines of the pairs from j on, of which `left` exist, at a row's position.
struct Angles {
    Reg<float, 8> cos, sin;
};
DEVICE void read_angles(View<const float> table, u64 at, u32 half, u32 j, u32 left, Angles& to HERE) {
    bool wide = half % 4 == 0 && aligned(table);
    UNROLL for (u32 k = 0; k < 8; k += 4) {
        u32 rest = left > k ? left - k : 0;
        V16 c = load4(table, at + j + k, rest, wide AT), s = load4(table, at + half + j + k, rest, wide AT);
        UNROLL for (u32 i = 0; i < 4; i++) {
            to.cos[k + i] = f32_of(c.w[i]);
            to.sin[k + i] = f32_of(s.w[i]);
        }
    }
}

// The first and the second elements of eight pairs.
struct Pairs {
    V16 first, second;
};
template <class T> DEVICE Pairs read(View<T> x, u64 i, u32 half, u32 left, bool wide HERE) {
    return {load8(x, i, left, wide AT), load8(x, i + half, left, wide AT)};
}
DEVICE void write(View<bf16> x, u64 i, u32 half, u32 left, bool wide, const Pairs& p HERE) {
    store8(x, i, left, wide, p.first AT);
    store8(x, i + half, left, wide, p.second AT);
}

// The weights of pairs; vectors are aligned where both halves of a head are.
DEVICE Pairs weights(View<const bf16> w, u32 j, u32 half, u32 left HERE) {
    return read(w, j, half, left, half % 8 == 0 && aligned(w) AT);
}

// Scales pairs, and rotates them.
DEVICE Pairs turned(const Pairs& x, const Pairs& w, float rstd, const Angles& t) {
    Reg<float, 8> first, second;
    UNROLL for (int i = 0; i < 8; i++) {
        float a = pick8(x.first, i) * rstd * pick8(w.first, i), b = pick8(x.second, i) * rstd * pick8(w.second, i);
        first[i] = a * t.cos[i] - b * t.sin[i];
        second[i] = b * t.cos[i] + a * t.sin[i];
    }
    Pairs y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.first.w[i] = pack2(first[2 * i], first[2 * i + 1]);
        y.second.w[i] = pack2(second[2 * i], second[2 * i + 1]);
    }
    return y;
}

KERNEL(qk_norm_rope, QkNormRope, 256) {
    u32 half = a.dim / 2, all = a.cols / a.dim, item = (block() * threads() + thread()) / a.lanes;
    u32 row = item / all, head = item % all, j = thread() % a.lanes * 8;
    // Lanes without elements stay for the sum.
    u32 left = row < a.rows && j < half ? half - j : 0;
    bool wide = a.cols % 8 == 0 && half % 8 == 0 && aligned(a.qkv) && aligned(a.y);
    u64 at = static_cast<u64>(row) * a.cols + static_cast<u64>(head) * a.dim + j;
    // All is loaded before the sum, which waits for it. Heads of v need nothing else.
    Pairs x = read(a.qkv, at, half, left, wide);
    u32 of_norm = head < a.heads ? left : 0;
    u64 angles_at = of_norm ? static_cast<u64>(ld(a.positions, row)) * a.dim : 0;
    Angles angles;
    read_angles(a.table, angles_at, half, j, of_norm, angles);
    // Two calls, because the compiler does not know that a pointer is global which it selects from two.
    Pairs w = head < a.query ? weights(a.q, j, half, of_norm) : weights(a.k, j, half, of_norm);
    float rstd = rstd_of(head_sum(squares(x.second, squares(x.first, 0)), a.lanes), a.dim, a.eps);
    if (of_norm) x = turned(x, w, rstd, angles);
    if (left) write(a.y, at, half, left, wide, x);
}

// -- backward --

// The gradients of eight scaled pairs: the second elements follow the first.
using Turned = Reg<float, 16>;

// g = R^T dy.
DEVICE void turn_back(const Pairs& dy, const Angles& t, Turned& g) {
    UNROLL for (int i = 0; i < 8; i++) {
        float a = pick8(dy.first, i), b = pick8(dy.second, i);
        g[i] = a * t.cos[i] + b * t.sin[i];
        g[8 + i] = b * t.cos[i] - a * t.sin[i];
    }
}

// The sum of g w x, continued by a vector; `at`: its first g. With `fresh` a pair is unpacked where it is needed, here
// and below: kept as floats, w and x would take twice the registers.
DEVICE float weighted(const Turned& g, int at, const V16& w, const V16& x, float sum) {
    UNROLL for (int i = 0; i < 4; i++) {
        u32 of_x = fresh(x.w[i]), of_w = fresh(w.w[i]);
        sum = fmadd(g[at + 2 * i] * low(of_w), low(of_x), sum);
        sum = fmadd(g[at + 2 * i + 1] * high(of_w), high(of_x), sum);
    }
    return sum;
}

// dx of a vector; adds to the weight's gradient. `c`: rstd^2 mean(g w x).
DEVICE V16 scaled_back(const Turned& g, int at, const V16& w, const V16& x, float rstd, float c, Turned& dw) {
    V16 dx;
    UNROLL for (int i = 0; i < 4; i++) {
        int k = at + 2 * i;
        u32 of_x = fresh(x.w[i]), of_w = fresh(w.w[i]);
        dw[k] = fmadd(g[k] * rstd, low(of_x), dw[k]);
        dw[k + 1] = fmadd(g[k + 1] * rstd, high(of_x), dw[k + 1]);
        float first = rstd * fmadd(-c, low(of_x), g[k] * low(of_w));
        dx.w[i] = pack2(first, rstd * fmadd(-c, high(of_x), g[k + 1] * high(of_w)));
    }
    return dx;
}

// A block's share of the heads of q, or of those of k.
struct Share {
    // The first head, their number in a row, and that of all rows.
    u32 first, heads, all;
    // The block's number among those of this share, and theirs.
    u32 block, blocks;
};
DEVICE Share share_of(const QkNormRopeBwd& a) {
    bool of_q = block() < a.q_blocks;
    u32 heads = of_q ? a.query : a.heads - a.query;
    return {of_q ? 0 : a.query, heads, a.rows * heads, of_q ? block() : block() - a.q_blocks,
            of_q ? a.q_blocks : blocks() - a.q_blocks};
}

// The gradient of one head; lanes with `left` = 0 have none, and take part in the sums only.
DEVICE void head_bwd(const QkNormRopeBwd& a, u32 row, u32 head, u32 j, u32 left, const Pairs& w, Turned& dw) {
    u32 half = a.dim / 2;
    bool wide = a.cols % 8 == 0 && half % 8 == 0 && aligned(a.qkv) && aligned(a.dqkv);
    u64 at = static_cast<u64>(row) * a.cols + static_cast<u64>(head) * a.dim + j;
    Pairs x = read(a.qkv, at, half, left, wide), dy = read(a.dqkv, at, half, left, wide);
    u64 angles_at = left ? static_cast<u64>(ld(a.positions, row)) * a.dim : 0;
    Angles angles;
    read_angles(a.table, angles_at, half, j, left, angles);
    Turned g;
    turn_back(dy, angles, g);
    float square = squares(x.second, squares(x.first, 0));
    float dot = weighted(g, 8, w.second, x.second, weighted(g, 0, w.first, x.first, 0));
    float rstd = rstd_of(head_sum(square, a.lanes), a.dim, a.eps);
    float c = rstd * rstd * div_rn(head_sum(dot, a.lanes), static_cast<float>(a.dim));
    Pairs dx;
    dx.first = scaled_back(g, 0, w.first, x.first, rstd, c, dw);
    dx.second = scaled_back(g, 8, w.second, x.second, rstd, c, dw);
    if (left) write(a.dqkv, at, half, left, wide, dx);
}

// The lanes that process the same columns of different heads are summed in order at the end. Shared memory: 16384
// bytes.
KERNEL(qk_norm_rope_bwd, QkNormRopeBwd, 256, 3) {
    u32 half = a.dim / 2, groups = threads() / a.lanes, group = thread() / a.lanes, j = thread() % a.lanes * 8;
    u32 pairs = j < half ? half - j : 0;
    Share of = share_of(a);
    Pairs w = weights(of.first ? a.k : a.q, j, half, pairs);
    Turned dw;
    UNROLL for (int i = 0; i < 16; i++) dw[i] = 0;
    for (u32 first = of.block * groups; first < of.all; first += of.blocks * groups) {
        u32 item = first + group;
        head_bwd(a, item / of.heads, of.first + item % of.heads, j, item < of.all ? pairs : 0, w, dw);
    }
    UNROLL for (u32 i = 0; i < 8; i++) {
        if (i >= pairs) continue;
        u32 at = shared_base() + (group * a.dim + j + i) * 4;
        sts(at, bits_of(dw[i]));
        sts(at + half * 4, bits_of(dw[8 + i]));
    }
    sync();
    for (u32 column = thread(); column < a.dim; column += threads()) {
        float sum = 0;
        for (u32 g = 0; g < groups; g++) sum += f32_of(lds(shared_base() + (g * a.dim + column) * 4));
        st(a.parts, static_cast<u64>(block()) * a.dim + column, sum);
    }
}
