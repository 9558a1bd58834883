// SwiGLU: y = silu(gate) up with silu(x) = x s, s = 1 / (1 + e^-x); dgate = dy up s (1 + gate (1 - s)),
// dup = dy gate s. With a weight p for each row: y = p silu(gate) up, gradients from p dy, and dp = sum of
// dy silu(gate) up.
#include "gated.cuh"

DEVICE float sigmoid(float x) { return fast_rcp(1.0f + fast_exp2(x * -1.44269504f)); }

DEVICE float product(float gate, float up) { return gate * sigmoid(gate) * up; }

KERNEL(swiglu, Gated, 256) {
    Place p = place(a);
    if (p.column >= a.f) return;
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide), up = load8(a.gate_up, p.gate + a.f, left, p.wide), y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.w[i] = pack2(product(low(gate.w[i]), low(up.w[i])), product(high(gate.w[i]), high(up.w[i])));
    }
    store8(a.y, p.y, left, p.wide, y);
}

// dgate and dup overwrite gate and up; dy is scaled by `weight`. Returns this thread's sum of dy silu(gate) up.
template <class Args> DEVICE float gradients(const Args& a, const Place& p, float weight HERE) {
    u32 left = a.f - p.column;
    V16 gate = load8(a.gate_up, p.gate, left, p.wide AT), up = load8(a.gate_up, p.gate + a.f, left, p.wide AT);
    V16 dy = load8(a.y, p.y, left, p.wide AT);
    Reg<float, 8> dgate, dup;
    float sum = 0;
    UNROLL for (int i = 0; i < 8; i++) {
        float g = pick8(gate, i), s = sigmoid(g), d = pick8(dy, i), u = pick8(up, i);
        sum += d * product(g, u);
        d *= weight;
        dgate[i] = d * u * s * fmadd(g, 1.0f - s, 1.0f);
        dup[i] = d * g * s;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        gate.w[i] = pack2(dgate[2 * i], dgate[2 * i + 1] AT);
        up.w[i] = pack2(dup[2 * i], dup[2 * i + 1] AT);
    }
    store8(a.gate_up, p.gate, left, p.wide, gate AT);
    store8(a.gate_up, p.gate + a.f, left, p.wide, up AT);
    return sum;
}

KERNEL(swiglu_bwd, Gated, 256) {
    Place p = place(a);
    if (p.column < a.f) gradients(a, p, 1.0f);
}

KERNEL(swiglu_weighted, GatedWeighted, 256) {
    Place p = place(a);
    if (p.column >= a.f) return;
    u32 left = a.f - p.column;
    float weight = ld(a.weights, block());
    V16 gate = load8(a.gate_up, p.gate, left, p.wide), up = load8(a.gate_up, p.gate + a.f, left, p.wide), y;
    UNROLL for (int i = 0; i < 4; i++) {
        float first = weight * product(low(gate.w[i]), low(up.w[i]));
        y.w[i] = pack2(first, weight * product(high(gate.w[i]), high(up.w[i])));
    }
    store8(a.y, p.y, left, p.wide, y);
}

// A block processes a row, whose sum is dp. Shared memory: 128 bytes.
KERNEL(swiglu_weighted_bwd, GatedWeighted, 256) {
    float weight = ld(a.weights, block()), sum = 0;
    for (u32 column = thread() * 8; column < a.f; column += threads() * 8) {
        sum += gradients(a, place(a, column), weight);
    }
    sum = block_sum(sum, shared_base());
    if (thread() == 0) st(a.dweights, block(), sum);
}
