// Each primitive of `prim.cuh` by itself, from input words to output words, so that a device can be compared with the
// emulator before any kernel runs there.
#include "common.cuh"

struct Probe {
    View<const u32> x;
    View<u32> y;
};
static_assert(sizeof(Probe) == 32, "as in probes.rs");

DEVICE u32 me() { return block() * threads() + thread(); }
// Argument k of the `count` arguments of this thread.
DEVICE float arg(const Probe& a, u32 k, u32 count) { return f32_of(ld(a.x, me() * count + k)); }
DEVICE void result(const Probe& a, float v) { st(a.y, me(), bits_of(v)); }

// -- numbers --

KERNEL(probe_pack2, Probe, 64) { st(a.y, me(), pack2(arg(a, 0, 2), arg(a, 1, 2))); }
KERNEL(probe_pack2_f16, Probe, 64) { st(a.y, me(), pack2_f16(arg(a, 0, 2), arg(a, 1, 2))); }
KERNEL(probe_halves_f16, Probe, 64) {
    st(a.y, 2 * me(), bits_of(low_f16(ld(a.x, me()))));
    st(a.y, 2 * me() + 1, bits_of(high_f16(ld(a.x, me()))));
}
KERNEL(probe_larger, Probe, 64) { result(a, larger(arg(a, 0, 2), arg(a, 1, 2))); }
KERNEL(probe_larger2, Probe, 64) { st(a.y, me(), larger2(ld(a.x, 2 * me()), ld(a.x, 2 * me() + 1))); }
KERNEL(probe_fresh, Probe, 64) { st(a.y, me(), fresh(ld(a.x, me()))); }
KERNEL(probe_fmadd, Probe, 64) { result(a, fmadd(arg(a, 0, 3), arg(a, 1, 3), arg(a, 2, 3))); }
// Two roundings: the compiler must not fuse them.
KERNEL(probe_unfused, Probe, 64) {
    float x = arg(a, 0, 3), y = arg(a, 1, 3), z = arg(a, 2, 3);
    result(a, x * y + z);
}
KERNEL(probe_div_rn, Probe, 64) { result(a, div_rn(arg(a, 0, 2), arg(a, 1, 2))); }
KERNEL(probe_sqrt_rn, Probe, 64) { result(a, sqrt_rn(arg(a, 0, 1))); }
KERNEL(probe_ln, Probe, 64) { result(a, ln(arg(a, 0, 1))); }
KERNEL(probe_fast_exp2, Probe, 64) { result(a, fast_exp2(arg(a, 0, 1))); }
KERNEL(probe_fast_log2, Probe, 64) { result(a, fast_log2(arg(a, 0, 1))); }
KERNEL(probe_fast_rcp, Probe, 64) { result(a, fast_rcp(arg(a, 0, 1))); }
KERNEL(probe_fast_rsqrt, Probe, 64) { result(a, fast_rsqrt(arg(a, 0, 1))); }

// In f64: the product of the first two f32 arguments, plus the third.
KERNEL(probe_fmadd64, Probe, 64) {
    double x = static_cast<double>(arg(a, 0, 3)), y = static_cast<double>(arg(a, 1, 3));
    union {
        double v;
        u32 w[2];
    } sum = {fmadd(x, y, static_cast<double>(arg(a, 2, 3)))};
    st(a.y, 2 * me(), sum.w[0]);
    st(a.y, 2 * me() + 1, sum.w[1]);
}

// The offset of shared memory from a multiple of 1024 bytes, which must be 0.
KERNEL(probe_shared_base, Probe, 64) { st(a.y, me(), shared_base() % 1024); }

// -- indices --

KERNEL(probe_indices, Probe, 64) {
    u32 at = ((block_z() * 2 + block_y()) * blocks() + block()) * threads() + thread();
    u32 all[6] = {thread(), threads(), block(), block_y(), block_z(), blocks()};
    for (u32 i = 0; i < 6; i++) st(a.y, at * 6 + i, all[i]);
}

// -- memory --

// Copies sixteen bytes per thread, in reverse order of the threads.
KERNEL(probe_wide, Probe, 64) { st16(a.y, me() * 4, ld16(a.x, (blocks() * threads() - 1 - me()) * 4)); }

// The same with the other store.
KERNEL(probe_whole, Probe, 64) { st16_whole(a.y, me() * 4, ld16(a.x, (blocks() * threads() - 1 - me()) * 4)); }

// Copies eight bytes per thread, with their words exchanged.
KERNEL(probe_eight, Probe, 64) {
    V8 v = ld8(a.x, me() * 2);
    st8(a.y, me() * 2, V8{v.w[1], v.w[0]});
}

KERNEL(probe_shared, Probe, 64) {
    sts(shared_base() + thread() * 4, ld(a.x, me()));
    sync();
    st(a.y, me(), lds(shared_base() + (63 - thread()) * 4));
}

// An f64 of any two words is handed to another lane, then to a thread of the other warp.
KERNEL(probe_words64, Probe, 64) {
    Words given = {0.0}, taken;
    for (u32 i = 0; i < 2; i++) given.w[i] = ld(a.x, me() * 2 + i);
    sts8(shared_base() + thread() * 8, shfl_xor(given.v, 5));
    sync();
    taken.v = lds8(shared_base() + (63 - thread()) * 8);
    for (u32 i = 0; i < 2; i++) st(a.y, me() * 2 + i, taken.w[i]);
}

KERNEL(probe_shared16, Probe, 64) {
    sts16(shared_base() + thread() * 16, ld16(a.x, me() * 4));
    sync();
    st16(a.y, me() * 4, lds16(shared_base() + (63 - thread()) * 16));
}

// Copies of every length from 0 to 16 bytes, in two groups that are waited for one after the other. Bytes that are not
// read are zero; a copy of length 0 has an index far out of bounds. After the second wait, each thread reads what a
// thread of the other warp has copied.
KERNEL(probe_cp_async16, Probe, 64) {
    u32 at = shared_base() + thread() * 16, bytes = me() % 17;
    cp_async16(at, a.x, bytes ? me() * 4 : 1u << 30, bytes);
    cp_commit();
    cp_async16(at + 1024, a.x, (me() ^ 32) * 4, 16 - bytes % 16);
    cp_commit();
    cp_wait<1>();
    st16(a.y, me() * 8, lds16(at));
    cp_wait<0>();
    sync();
    st16(a.y, me() * 8 + 4, lds16(shared_base() + 1024 + (thread() ^ 32) * 16));
}

// -- the warp --

// x holds the values of all threads, then for each thread the lane that it reads.
KERNEL(probe_shfl, Probe, 64) {
    u32 all = blocks() * threads();
    st(a.y, me(), shfl(ld(a.x, me()), ld(a.x, all + me())));
}

KERNEL(probe_shfl_xor, Probe, 64) {
    for (u32 mask = 1; mask < 32; mask++) st(a.y, me() * 31 + mask - 1, shfl_xor(ld(a.x, me()), mask));
}

KERNEL(probe_warp_any, Probe, 64) {
    for (u32 bit = 0; bit < 32; bit++) {
        u32 any = warp_any(ld(a.x, me()) == bit);
        st(a.y, me() * 32 + bit, any);
    }
}

KERNEL(probe_warp_sync, Probe, 64) {
    sts(shared_base() + thread() * 4, ld(a.x, me()));
    warp_sync();
    st(a.y, me(), lds(shared_base() + (thread() ^ 31) * 4));
}

// The address of lane l's row: row 5 l % 32 of the warp's 32.
DEVICE u32 row(u32 lane) { return shared_base() + (thread() / 32 * 32 + 5 * lane % 32) * 16; }

DEVICE void store(const Probe& a, const Reg<u32, 4>& d) {
    for (int i = 0; i < 4; i++) st(a.y, me() * 4 + i, d[i]);
}

KERNEL(probe_ldmatrix, Probe, 64) {
    sts16(row(thread() % 32), ld16(a.x, me() * 4));
    sync();
    Reg<u32, 4> d;
    ldmatrix(d, row(thread() % 32));
    store(a, d);
}

KERNEL(probe_ldmatrix_trans, Probe, 64) {
    sts16(row(thread() % 32), ld16(a.x, me() * 4));
    sync();
    Reg<u32, 4> d;
    ldmatrix_trans(d, row(thread() % 32));
    store(a, d);
}

// x has ten words for each thread: its parts of a (4), b (2) and c (4).
KERNEL(probe_mma, Probe, 64) {
    Reg<u32, 4> m;
    Reg<float, 4> c;
    for (int i = 0; i < 4; i++) m[i] = ld(a.x, me() * 10 + i);
    for (int i = 0; i < 4; i++) c[i] = f32_of(ld(a.x, me() * 10 + 6 + i));
    mma(c, m, ld(a.x, me() * 10 + 4), ld(a.x, me() * 10 + 5));
    for (int i = 0; i < 4; i++) st(a.y, me() * 4 + i, bits_of(c[i]));
}
