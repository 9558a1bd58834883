// AdamW in one pass over a shard: f32 master weights and moments in their place, new weights rounded to bf16.
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, master -= rate m / (sqrt(v scale) + eps) + decay master.
#include "args.cuh"
#include "common.cuh"

// The element's new weight; g, m and v are of one element. `m` and `v` hold the new moments after.
DEVICE float step(const AdamW& a, float g, float decay, float master, float& m, float& v) {
    m = fmadd(a.beta1, m, a.fresh1 * g);
    v = fmadd(a.beta2, v, a.fresh2 * g * g);
    float step = div_rn(a.rate * m, sqrt_rn(v * a.scale) + a.eps);
    return master - fmadd(decay, master, step);
}

// Four weights of which `n` are left.
DEVICE void store_weights(View<bf16> out, u64 i, u32 n, u32 first, u32 second) {
    UNROLL for (u32 k = 0; k < 4; k++) {
        u32 pair = k < 2 ? first : second;
        if (k < n) st(out, i + k, bf16{static_cast<u16>(pair >> 16 * (k % 2))});
    }
}

KERNEL(adamw, AdamW, 256) {
    bool wide = aligned(a.g) && aligned(a.master) && aligned(a.m) && aligned(a.v);
    float factor = ld(a.factor, 1);
    u64 stride = static_cast<u64>(blocks()) * threads() * 4;
    for (u64 i = (static_cast<u64>(block()) * threads() + thread()) * 4; i < a.g.n; i += stride) {
        u32 n = a.g.n - i < 4 ? static_cast<u32>(a.g.n - i) : 4;
        V16 g = load4(a.g, i, n, wide), master = load4(a.master, i, n, wide);
        V16 m = load4(a.m, i, n, wide), v = load4(a.v, i, n, wide);
        UNROLL for (int k = 0; k < 4; k++) {
            float decay = i + k < a.decayed ? a.decay : 0.0f, next_m = f32_of(m.w[k]), next_v = f32_of(v.w[k]);
            master.w[k] = bits_of(step(a, f32_of(g.w[k]) * factor, decay, f32_of(master.w[k]), next_m, next_v));
            m.w[k] = bits_of(next_m);
            v.w[k] = bits_of(next_v);
        }
        store4(a.master, i, n, wide, master);
        store4(a.m, i, n, wide, m);
        store4(a.v, i, n, wide, v);
        u32 first = pack2(f32_of(master.w[0]), f32_of(master.w[1])), second = pack2(f32_of(master.w[2]), f32_of(master.w[3]));
        store_weights(a.out, i, n, first, second);
    }
}
