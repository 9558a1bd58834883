// Kernels with one bug each, for the emulator's own tests: the line that it must name ends in `BUG` and the
// kernel's name. The last two have none.
#include "common.cuh"

struct Planted {
    View<const float> x;
    View<float> y;
};

DEVICE u32 mine() { return shared_base() + thread() * 4; }
DEVICE u32 others() { return shared_base() + (thread() + 32) % 64 * 4; }
DEVICE u32 neighbours() { return shared_base() + (thread() / 32 * 32 + (thread() + 1) % 32) * 4; }

KERNEL(race, Planted, 64) {
    sts(mine(), bits_of(ld(a.x, thread())));
    st(a.y, thread(), f32_of(lds(others())));  // BUG race
}

KERNEL(race_of_a_warp, Planted, 64) {
    sts(mine(), thread());
    warp_sync();
    u32 v = lds(neighbours());
    sts(mine(), v);  // BUG race_of_a_warp
}

KERNEL(race_in_a_loop, Planted, 64) {
    for (u32 i = 0; i < 3; i++) {
        sts(mine(), i);  // BUG race_in_a_loop
        sync();
        st(a.y, thread(), f32_of(lds(others())));
    }
}

KERNEL(overwritten, Planted, 64) {
    sts(mine(), bits_of(ld(a.x, thread())));
    sync();
    if (thread() < 32) {
        st(a.y, thread(), f32_of(lds(others())));
    } else {
        sts(mine(), 0);  // BUG overwritten
    }
}

KERNEL(no_wait, Planted, 64) {
    cp_async16(shared_base() + thread() * 16, a.x, thread() * 4, 16);
    cp_commit();
    sync();
    st(a.y, thread(), f32_of(lds(shared_base() + thread() * 16)));  // BUG no_wait
}

KERNEL(waits_too_little, Planted, 64) {
    for (u32 i = 0; i < 2; i++) {
        cp_async16(shared_base() + (i * 64 + thread()) * 16, a.x, thread() * 4, 16);
        cp_commit();
    }
    cp_wait<1>();
    sync();
    st(a.y, thread(), f32_of(lds(shared_base() + thread() * 16)));
    st(a.y, thread(), f32_of(lds(shared_base() + (64 + thread()) * 16)));  // BUG waits_too_little
}

KERNEL(lost_thread, Planted, 64) {
    if (thread() >= 32) return;
    sync();  // BUG lost_thread
}

KERNEL(lost_lane, Planted, 64) {
    if (thread() == 5) return;
    st(a.y, thread(), warp_sum(1.0f));  // BUG lost_lane
}

KERNEL(two_barriers, Planted, 64) {
    if (thread() < 32) {
        sync();  // BUG two_barriers
    } else {
        sync();
    }
}

KERNEL(unset, Planted, 64) {
    Reg<float, 2> r;
    r[0] = 1;
    st(a.y, thread(), r[0] + 2.0f * r[1]);  // BUG unset
}

KERNEL(unset_mma, Planted, 64) {
    Reg<float, 4> c;
    Reg<u32, 4> m;
    for (int i = 0; i < 4; i++) m[i] = 0;
    mma(c, m, 0, 0);  // BUG unset_mma
}

KERNEL(unwritten, Planted, 64) {
    if (thread() < 63) sts(mine(), 1);
    sync();
    st(a.y, thread(), f32_of(lds(mine())));  // BUG unwritten
}

KERNEL(tail, Planted, 64) {
    for (u32 i = thread(); i <= a.x.n; i += 64) {
        st(a.y, thread(), ld(a.x, i));  // BUG tail
    }
}

KERNEL(odd_wide, Planted, 64) {
    st16(a.y, 0, ld16(a.x, 2));  // BUG odd_wide
}

KERNEL(beyond_shared, Planted, 64) {
    sts(shared_base() + 4096 - 4 * thread(), 0);  // BUG beyond_shared
}

// The bits of the small numbers that x holds, as pairs of bf16 at `at` in rows of 16 elements, `pitch` bytes apart.
DEVICE void fill(View<const float> x, u32 at, u32 rows, u32 pitch) {
    for (u32 i = thread(); i < rows * 8; i += 64) {
        sts(at + i / 8 * pitch + i % 8 * 4, pack2(ld(x, 2 * i), ld(x, 2 * i + 1)));
    }
    sync();
}

// y [16, 8] = x [16, 16] times the transpose of the first eight rows of x, by the first warp.
DEVICE void multiply(const Planted& a, u32 pitch) {
    fill(a.x, shared_base(), 16, pitch);
    if (thread() >= 32) return;
    u32 lane = thread();
    Reg<u32, 4> m, n;
    // Matrices in the order of a's registers: rows 0 and 8 of columns 0, then of columns 8.
    ldmatrix(m, shared_base() + lane % 16 * pitch + lane / 16 * 16);
    ldmatrix(n, shared_base() + lane % 8 * pitch + lane / 8 % 2 * 16);
    Reg<float, 4> c;
    for (int i = 0; i < 4; i++) c[i] = 0;
    mma(c, m, n[0], n[1]);
    for (u32 i = 0; i < 4; i++) st(a.y, (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2, c[i]);
}

// Rows 48 bytes apart lie in different banks.
KERNEL(product, Planted, 64) { multiply(a, 48); }

// Rows 128 bytes apart lie in the same four.
KERNEL(conflicts, Planted, 64) { multiply(a, 128); }
