// The primitives of sm_90a: mbarriers, TMA copies, warpgroup matrix multiplication (wgmma), named barriers. As in
// `prim.cuh`, this is the device version; the emulator's is `emulator/runtime/hopper.h`.
#pragma once
#include "prim.cuh"

// A TMA descriptor, encoded by the host. Kernels only pass it to the primitives of this file.
struct alignas(128) TensorMap {
    u64 words[16];
};

#ifdef EMULATOR
#include "hopper.h"
#else

// TMA reads a tensor map in parameter memory, so the arguments must not be copied.
#undef PASSED
#define PASSED const __grid_constant__

// -- mbarriers: 8 bytes of shared memory at `bar`, in phases that threads wait for by parity --

// A phase completes when `count` arrivals and all announced bytes have arrived. Called by one thread; the others see
// the mbarrier after `mbar_init_fence` and a barrier.
DEVICE void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DEVICE void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Arrives, and announces `bytes` for the phase to wait for.
DEVICE void mbar_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Waits for the phase of that parity; before the first phase, the phase of parity 1 counts as completed.
DEVICE void mbar_wait(u32 bar, u32 parity) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
    } while (!done);
}

// -- the copy engine --

// Starts to copy the map's box at (x, y, z, w) to shared memory; its bytes arrive at `bar`. Rows have 128 bytes; the
// 16-byte chunks of row r are swizzled by XOR r % 8; out-of-bounds elements are zero. `to` is aligned to 1024 bytes.
DEVICE void tma_load(u32 to, const TensorMap& map, u32 bar, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                 "l"(&map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
// Starts to copy `bytes` from element i on to shared memory; they arrive at `bar`. All are multiples of 16.
template <class T> DEVICE void bulk_load(u32 to, View<T> x, u64 i, u32 bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(x.p + i), "r"(bytes), "r"(bar)
                 : "memory");
}
// Makes this thread's writes to shared memory visible to TMA and wgmma after the next barrier.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- named barriers of `count` threads (whole warps); `id` from 1 on, since 0 is `sync` --

DEVICE void group_sync(u32 id, u32 count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }
// Arrives without waiting.
DEVICE void group_arrive(u32 id, u32 count) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory"); }

// -- registers of a warpgroup's threads; a kernel that calls these is launched with one block per multiprocessor --

template <int N> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// -- wgmma: asynchronous, in groups that are waited for in order --

// A compiler barrier for accesses to these registers. Called after the wait for the wgmma that uses them.
template <int N> DEVICE void pin(Reg<float, N>& r) {
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N> DEVICE void pin(Reg<u32, N>& r) {
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}
template <class R, int N> DEVICE void pin(R (&r)[N]) {
    UNROLL for (int i = 0; i < N; i++) pin(r[i]);
}

// Called after the last access to the registers that the next wgmma reads or accumulates. While wgmma is in flight,
// name only those that were accessed: naming accumulators accesses them, and the compiler would serialize the wgmma.
template <class... Rs> DEVICE void wgmma_fence(Rs&... registers) {
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of wgmma since the last call.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N groups are in flight; then `pin` the registers of those that have completed.
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// d [64, 2 R] += a [64, 16] b [16, 2 R]; `wgmma_new` overwrites d, which need not be initialized. Warp w of the group
// has the rows from 16 w on; per eight columns its lanes hold d, and a, like those of `mma`. Descriptors locate
// operands in shared memory. ACROSS: b is stored there with rows of k instead of n; LEFT_ACROSS: a with rows of k
// instead of m.
#define REGS_4(way, d, i) way(d[i]), way(d[i + 1]), way(d[i + 2]), way(d[i + 3])
#define REGS_16(way, d, i) REGS_4(way, d, i), REGS_4(way, d, i + 4), REGS_4(way, d, i + 8), REGS_4(way, d, i + 12)
#define REGS_32(way, d) REGS_16(way, d, 0), REGS_16(way, d, 16)
#define REGS_64(way, d) REGS_32(way, d), REGS_16(way, d, 32), REGS_16(way, d, 48)
#define NAMES_32                                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                       \
    NAMES_32                                                                                                           \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                               \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA(shape, add) "{ .reg .pred p; mov.pred p, " add "; wgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 "

template <bool ACROSS, bool LEFT_ACROSS = false> DEVICE void wgmma(Reg<float, 32>& d, u64 a, u64 b) {
    asm volatile(WGMMA("m64n64k16", "1") NAMES_32 "}, %32, %33, p, 1, 1, %34, %35; }"
                 : REGS_32("+f", d)
                 : "l"(a), "l"(b), "n"(LEFT_ACROSS), "n"(ACROSS));
}
template <bool ACROSS, bool LEFT_ACROSS = false> DEVICE void wgmma(Reg<float, 64>& d, u64 a, u64 b) {
    asm volatile(WGMMA("m64n128k16", "1") NAMES_64 "}, %64, %65, p, 1, 1, %66, %67; }"
                 : REGS_64("+f", d)
                 : "l"(a), "l"(b), "n"(LEFT_ACROSS), "n"(ACROSS));
}
template <bool ACROSS, bool LEFT_ACROSS = false> DEVICE void wgmma_new(Reg<float, 32>& d, u64 a, u64 b) {
    asm volatile(WGMMA("m64n64k16", "0") NAMES_32 "}, %32, %33, p, 1, 1, %34, %35; }"
                 : REGS_32("=f", d)
                 : "l"(a), "l"(b), "n"(LEFT_ACROSS), "n"(ACROSS));
}
template <bool ACROSS, bool LEFT_ACROSS = false> DEVICE void wgmma_new(Reg<float, 64>& d, u64 a, u64 b) {
    asm volatile(WGMMA("m64n128k16", "0") NAMES_64 "}, %64, %65, p, 1, 1, %66, %67; }"
                 : REGS_64("=f", d)
                 : "l"(a), "l"(b), "n"(LEFT_ACROSS), "n"(ACROSS));
}
template <bool ACROSS> DEVICE void wgmma(Reg<float, 32>& d, Reg<u32, 4>& a, u64 b) {
    asm volatile(WGMMA("m64n64k16", "1") NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %37; }"
                 : REGS_32("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS));
}
template <bool ACROSS> DEVICE void wgmma(Reg<float, 64>& d, Reg<u32, 4>& a, u64 b) {
    asm volatile(WGMMA("m64n128k16", "1") NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %69; }"
                 : REGS_64("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS));
}
#undef WGMMA
#undef NAMES_64
#undef NAMES_32
#undef REGS_64
#undef REGS_32
#undef REGS_16
#undef REGS_4

#endif
