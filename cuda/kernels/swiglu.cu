// Products with a gate of the sigmoid, s(x) = 1 / (1 + e^-x).
// SwiGLU: y = silu(gate) up with silu(x) = x s(x); dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.
// GPT-OSS clamps both: with g = min(gate, 7), u = up within -7 .. 7 and s = s(1.702 g), y = (u + 1) g s;
// dgate = dy (u + 1) s (1 + 1.702 g (1 - s)), dup = dy g s, zero where a clamp holds.
// With a weight p for each row, y is p times that, gradients are those of p dy, and dp = sum of dy y / p.
#include "gated.cuh"

DEVICE float sigmoid(float x) { return fast_rcp(1.0f + fast_exp2(x * -1.44269504f)); }

// dgate and dup.
struct Gradients {
    float gate, up;
};

struct SwiGlu {
    DEVICE float value(float gate, float up) { return gate * sigmoid(gate) * up; }
    DEVICE Gradients gradients(float dy, float gate, float up) {
        float s = sigmoid(gate);
        return {dy * up * s * fmadd(gate, 1.0f - s, 1.0f), dy * gate * s};
    }
};

constexpr float SLOPE = 1.702f, LIMIT = 7.0f;

// NaN is not clamped.
DEVICE float below(float x) { return x > LIMIT ? LIMIT : x; }
DEVICE float within(float x) { return x < -LIMIT ? -LIMIT : below(x); }

struct Clamped {
    DEVICE float value(float gate, float up) {
        float g = below(gate);
        return (within(up) + 1.0f) * g * sigmoid(SLOPE * g);
    }
    DEVICE Gradients gradients(float dy, float gate, float up) {
        float g = below(gate), u = within(up), s = sigmoid(SLOPE * g);
        float dg = dy * (u + 1.0f) * s * fmadd(SLOPE * g, 1.0f - s, 1.0f), du = dy * g * s;
        return {gate > LIMIT ? 0.0f : dg, up > LIMIT || up < -LIMIT ? 0.0f : du};
    }
};

// y, times a weight.
template <class Gate, class Args> DEVICE void forward(const Args& a, float weight HERE) {
    Place p = place(a);
    if (p.column >= a.f) return;
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide AT), up = load8(a.gate_up, p.gate + a.f, left, p.wide AT), y;
    UNROLL for (int i = 0; i < 4; i++) {
        float first = weight * Gate::value(low(gate.w[i]), low(up.w[i]));
        y.w[i] = pack2(first, weight * Gate::value(high(gate.w[i]), high(up.w[i])) AT);
    }
    store8(a.y, p.y, left, p.wide, y AT);
}

// dgate and dup overwrite gate and up; dy is scaled by `weight`. Returns this thread's sum of dy y / p.
template <class Gate, class Args> DEVICE float backward(const Args& a, const Place& p, float weight HERE) {
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide AT), up = load8(a.gate_up, p.gate + a.f, left, p.wide AT);
    V16 dy = load8(a.y, p.y, left, p.wide AT);
    Reg<float, 8> dgate, dup;
    float sum = 0;
    UNROLL for (int i = 0; i < 8; i++) {
        float g = pick8(gate, i), d = pick8(dy, i), u = pick8(up, i);
        sum += d * Gate::value(g, u);
        Gradients of = Gate::gradients(d * weight, g, u);
        dgate[i] = of.gate;
        dup[i] = of.up;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        gate.w[i] = pack2(dgate[2 * i], dgate[2 * i + 1] AT);
        up.w[i] = pack2(dup[2 * i], dup[2 * i + 1] AT);
    }
    store8(a.gate_up, p.gate, left, p.wide, gate AT);
    store8(a.gate_up, p.gate + a.f, left, p.wide, up AT);
    return sum;
}

// A block processes a row, whose sum is dp. Shared memory: 128 bytes.
template <class Gate> DEVICE void backward_row(const GatedWeighted& a HERE) {
    float weight = ld(a.weights, block() AT), sum = 0;
    for (u32 column = thread() * 8; column < a.f; column += threads() * 8) {
        sum += backward<Gate>(a, place(a, column), weight AT);
    }
    sum = block_sum(sum, shared_base() AT);
    if (thread() == 0) st(a.dweights, block(), sum AT);
}

KERNEL(swiglu, Gated, 256) { forward<SwiGlu>(a, 1.0f); }
KERNEL(swiglu_bwd, Gated, 256) {
    Place p = place(a);
    if (p.column < a.f) backward<SwiGlu>(a, p, 1.0f);
}

KERNEL(swiglu_weighted, GatedWeighted, 256) { forward<SwiGlu>(a, ld(a.weights, block())); }
KERNEL(swiglu_weighted_bwd, GatedWeighted, 256) { backward_row<SwiGlu>(a); }
KERNEL(clamped_swiglu_weighted, GatedWeighted, 256) { forward<Clamped>(a, ld(a.weights, block())); }
KERNEL(clamped_swiglu_weighted_bwd, GatedWeighted, 256) { backward_row<Clamped>(a); }
