// The primitives that kernels are written in, and the only PTX besides prim_hopper.cuh. The part above the
// `#ifdef` is common; then follows the device version, or for the emulator the host version with the same
// names (`emulator/runtime/host.h`). No header is needed, so NVRTC compiles it alone.
//
// Shared memory is accessed by u32 addresses from `shared_base()` on, global memory through views with a
// length, so that the emulator checks every access.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};

// A vector of sixteen bytes: 8 bf16 or 4 f32.
struct alignas(8) V8 {
    u32 w[2];
};
struct alignas(16) V16 {
    u32 w[4];
};

// The two words of an f64.
union Words {
    double v;
    u32 w[2];
};

// `n` elements of global memory.
template <class T> struct View {
    T* p;
    u64 n;
};

#ifdef EMULATOR
#include "host.h"
#else

// In the emulator, HERE at the end of a helper's parameters and AT at the end of its calls pass on the source line.
#define HERE
#define AT
#define AT_ONLY
#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
// The arguments are the maximum block size and optionally the minimum number of blocks per multiprocessor.
#define KERNEL(name, Args, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(PASSED Args a)
#define PASSED const

// N uninitialized registers of one thread. Indices must be constants after unrolling.
template <class T, int N> struct Reg {
    T v[N];
    __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

// -- indices --

DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 threads() { return blockDim.x; }
DEVICE u32 block() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 blocks() { return gridDim.x; }

// Hides from the compiler that v is loop-invariant, so that values derived from it do not occupy registers in a loop.
DEVICE u32 fresh(u32 v) {
    asm volatile("" : "+r"(v));
    return v;
}

// -- numbers --

DEVICE float f32_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float fmadd(float a, float b, float c) {
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
    return d;
}
DEVICE double fmadd(double a, double b, double c) {
    double d;
    asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(d) : "d"(a), "d"(b), "d"(c));
    return d;
}
DEVICE float div_rn(float a, float b) {
    float d;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}
DEVICE float sqrt_rn(float a) {
    float d;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}
// The larger of both; if one is NaN, the other.
DEVICE float larger(float a, float b) {
    float d;
    asm("max.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}
// The same for each of two bf16.
DEVICE u32 larger2(u32 a, u32 b) {
    u32 d;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
// The natural logarithm, with an error of at most 1 ulp.
DEVICE float ln(float a) { return logf(a); }
// An error of at most 2 ulp; subnormals are flushed to zero.
DEVICE float fast_exp2(float a) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}
DEVICE float fast_rcp(float a) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}
DEVICE float fast_rsqrt(float a) {
    float d;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}
// An error of at most 1e-6 near a logarithm of zero, else 2 ulp; subnormals are flushed to zero.
DEVICE float fast_log2(float a) {
    float d;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
    return d;
}
// Packs two bf16, the first in the low half; rounds to nearest, ties to even.
DEVICE u32 pack2(float low, float high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// The same with f16, which has three more significant bits but a range of only 2^-24 to 65504.
DEVICE u32 pack2_f16(float low, float high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
DEVICE float low_f16(u32 pair) {
    float d;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(d) : "r"(pair));
    return d;
}
DEVICE float high_f16(u32 pair) {
    float d;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(d) : "r"(pair));
    return d;
}

// -- global memory --

template <class T> DEVICE T ld(View<T> x, u64 i) { return x.p[i]; }
template <class T> DEVICE void st(View<T> x, u64 i, T v) { x.p[i] = v; }
// Sixteen bytes from element i on, whose address is a multiple of 16.
template <class T> DEVICE V16 ld16(View<T> x, u64 i) { return *reinterpret_cast<const V16*>(x.p + i); }
template <class T> DEVICE void st16(View<T> x, u64 i, V16 v) { *reinterpret_cast<V16*>(x.p + i) = v; }
// The same in one instruction. The compiler splits st16 into four where the words come from instructions that it does
// not look into, as those from shared memory and shuffles do.
template <class T> DEVICE void st16_whole(View<T> x, u64 i, V16 v) {
    asm volatile("{ .reg .u64 to; cvta.to.global.u64 to, %0; st.global.v4.u32 [to], {%1, %2, %3, %4}; }" ::"l"(x.p + i),
                 "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
                 : "memory");
}
// Eight bytes from element i on, whose address is a multiple of 8.
template <class T> DEVICE V8 ld8(View<T> x, u64 i) { return *reinterpret_cast<const V8*>(x.p + i); }
template <class T> DEVICE void st8(View<T> x, u64 i, V8 v) { *reinterpret_cast<V8*>(x.p + i) = v; }

// -- the block --

DEVICE void sync() { asm volatile("bar.sync 0;" ::: "memory"); }
DEVICE void warp_sync() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }
// Whether `so` is true for any lane of the warp.
DEVICE bool warp_any(bool so) {
    u32 d;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.any.pred p, p, 0xffffffff; selp.u32 %0, 1, 0, p; }"
                 : "=r"(d)
                 : "r"(static_cast<u32>(so)));
    return d;
}
DEVICE u32 shfl_xor(u32 v, u32 mask) {
    u32 d;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(d) : "r"(v), "r"(mask));
    return d;
}
DEVICE double shfl_xor(double v, u32 mask) {
    Words bits = {v};
    bits.w[0] = shfl_xor(bits.w[0], mask);
    bits.w[1] = shfl_xor(bits.w[1], mask);
    return bits.v;
}
DEVICE u32 shfl(u32 v, u32 lane) {
    u32 d;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(d) : "r"(v), "r"(lane));
    return d;
}

// -- shared memory --

extern __shared__ __align__(1024) V16 dynamic_shared[];
// The first address of the launch's shared memory, a multiple of 1024.
DEVICE u32 shared_base() {
    u32 d;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(d) : "l"(dynamic_shared));
    return d;
}
DEVICE u32 lds(u32 at) {
    u32 d;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(d) : "r"(at) : "memory");
    return d;
}
DEVICE void sts(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
DEVICE double lds8(u32 at) {
    double d;
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(d) : "r"(at) : "memory");
    return d;
}
DEVICE void sts8(u32 at, double v) { asm volatile("st.shared.f64 [%0], %1;" ::"r"(at), "d"(v) : "memory"); }
DEVICE V16 lds16(u32 at) {
    V16 d;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.w[0]), "=r"(d.w[1]), "=r"(d.w[2]), "=r"(d.w[3])
                 : "r"(at)
                 : "memory");
    return d;
}
DEVICE void sts16(u32 at, V16 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(at), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
                 : "memory");
}

// Starts to copy sixteen bytes from element i on to shared memory, of which `bytes` are read and the rest is zero. If
// that is 0, i may be out of bounds.
template <class T> DEVICE void cp_async16(u32 to, View<T> x, u64 i, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(x.p + i), "r"(bytes) : "memory");
}
// Closes this thread's group of copies.
DEVICE void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are in flight.
template <int N> DEVICE void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// -- tensor cores --

// Loads four 8x8 matrices of bf16: lane 8 i + r passes the address of row r of matrix i, and receives from each matrix
// the element (lane / 4, 2 (lane % 4)) and its right neighbour.
DEVICE void ldmatrix(Reg<u32, 4>& d, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(at)
                 : "memory");
}
// The same with each matrix transposed.
DEVICE void ldmatrix_trans(Reg<u32, 4>& d, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(at)
                 : "memory");
}
// c [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = 2 (lane % 4): a holds (g, t), (g + 8, t), (g, t + 8),
// (g + 8, t + 8), each with its right neighbour; b holds (t, g) and (t + 8, g), each with the one below it; c holds
// (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
DEVICE void mma(Reg<float, 4>& c, const Reg<u32, 4>& a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
