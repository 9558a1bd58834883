// GELU in its tanh form (Hendrycks & Gimpel 2016): gelu(x) = x s with s = (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) and
// u = sqrt(2 / pi) (x + 0.044715 x^3); gelu'(x) = s + 2 x s (1 - s) u'. GeGLU (Shazeer 2020): y = gelu(gate) up,
// dgate = dy up gelu'(gate), dup = dy gelu(gate).
#include "gated.cuh"

// e^-2u = 2^(x (EXPONENT + EXPONENT3 x^2)), and 2 u' = SLOPE + SLOPE3 x^2.
constexpr float EXPONENT = -2.3022082f, EXPONENT3 = -0.10294324f;
constexpr float SLOPE = 1.5957691f, SLOPE3 = 0.21406445f;

DEVICE float share(float x) { return fast_rcp(1.0f + fast_exp2(x * fmadd(EXPONENT3, x * x, EXPONENT))); }

DEVICE float value(float x) { return x * share(x); }

// gelu(x) and gelu'(x). s (1 - s) is multiplied first: where it is 0, so is the product, while x^2 is finite.
struct Both {
    float value, slope;
};
DEVICE Both value_and_slope(float x) {
    float s = share(x);
    return {x * s, fmadd(s * (1.0f - s) * x, fmadd(SLOPE3, x * x, SLOPE), s)};
}

KERNEL(geglu, Gated, 256) {
    Place p = place(a);
    if (p.column >= a.f) return;
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide), up = load8(a.gate_up, p.gate + a.f, left, p.wide), y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.w[i] = pack2(value(low(gate.w[i])) * low(up.w[i]), value(high(gate.w[i])) * high(up.w[i]));
    }
    store8(a.y, p.y, left, p.wide, y);
}

// Overwrites gate with dgate, and up with dup.
KERNEL(geglu_bwd, Gated, 256) {
    Place p = place(a);
    if (p.column >= a.f) return;
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide), up = load8(a.gate_up, p.gate + a.f, left, p.wide);
    V16 dy = load8(a.y, p.y, left, p.wide);
    Reg<float, 8> dgate, dup;
    UNROLL for (int i = 0; i < 8; i++) {
        Both of = value_and_slope(pick8(gate, i));
        dgate[i] = pick8(dy, i) * pick8(up, i) * of.slope;
        dup[i] = pick8(dy, i) * of.value;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        gate.w[i] = pack2(dgate[2 * i], dgate[2 * i + 1]);
        up.w[i] = pack2(dup[2 * i], dup[2 * i + 1]);
    }
    store8(a.gate_up, p.gate, left, p.wide, gate);
    store8(a.gate_up, p.gate + a.f, left, p.wide, up);
}

// -- without a gate: a thread processes eight elements --

// The first of this thread's elements, and how many of them exist, at most eight.
DEVICE u64 first() { return (static_cast<u64>(block()) * threads() + thread()) * 8; }
DEVICE u32 left(u64 n, u64 i) { return n - i < 8 ? static_cast<u32>(n - i) : 8; }

KERNEL(gelu, Gelu, 256) {
    u64 i = first();
    if (i >= a.x.n) return;
    u32 n = left(a.x.n, i);
    V16 x = load8(a.x, i, n, aligned(a.x)), y;
    UNROLL for (int k = 0; k < 4; k++) y.w[k] = pack2(value(low(x.w[k])), value(high(x.w[k])));
    store8(a.y, i, n, aligned(a.y), y);
}

// Overwrites x with dx; y is dy.
KERNEL(gelu_bwd, Gelu, 256) {
    u64 i = first();
    if (i >= a.x.n) return;
    u32 n = left(a.x.n, i);
    V16 x = load8(a.x, i, n, aligned(a.x)), dy = load8(a.y, i, n, aligned(a.y));
    UNROLL for (int k = 0; k < 4; k++) {
        float first = low(dy.w[k]) * value_and_slope(low(x.w[k])).slope;
        x.w[k] = pack2(first, high(dy.w[k]) * value_and_slope(high(x.w[k])).slope);
    }
    store8(a.x, i, n, aligned(a.x), x);
}
