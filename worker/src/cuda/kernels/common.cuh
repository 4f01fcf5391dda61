// What every kernel shares: number formats, warp reductions, asynchronous copies and tensor-core instructions.
//
// Compiled by NVRTC with these macros defined by the caller:
//   HEAD_DIM    elements of one attention head (64 or 128)
//   BLOCK_SIZE  tokens in one KV block (64)
//   F16         set: weights, activations and KV are stored as IEEE half; otherwise as bfloat16
// Everything runs on compute capability 8.0 and later unless a kernel says otherwise.
#pragma once
// No header of the CUDA toolkit is included, so that a machine with the driver and NVRTC alone can compile it.
typedef unsigned int u32;
typedef unsigned long long u64;

// One stored number, and its format as instructions name it. Arithmetic is float; only storage and the operands of tensor
// cores are this.
struct elem {
  unsigned short bits;
};
#ifdef F16
#define ELEM "f16"
#else
#define ELEM "bf16"
#endif

#define WARP 32
#define INFINITY_F __int_as_float(0x7f800000)
#define NEG_INF (-1e30f)  // finite, so that the difference of two is 0 and never NaN

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

// Sum over the whole block; every thread gets it. `shared` holds one float per warp.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = lane < warps ? shared[lane] : 0.0f;
  return warp_sum(x);
}

__device__ __forceinline__ float to_float(elem x) {
#ifdef F16
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#else
  return __uint_as_float((u32)x.bits << 16);  // the upper half of a float
#endif
}

// Two neighbours: `lo` in the lower half.
__device__ __forceinline__ void unpack2(u32 x, float& lo, float& hi) {
#ifdef F16
  lo = to_float(elem{(unsigned short)x});
  hi = to_float(elem{(unsigned short)(x >> 16)});
#else
  lo = __uint_as_float(x << 16);
  hi = __uint_as_float(x & 0xffff0000u);
#endif
}

// Two floats, rounded to nearest even: `lo` in the lower half. What is too large for the format becomes infinite.
__device__ __forceinline__ u32 pack2(float lo, float hi) {
  u32 d;
  asm("cvt.rn." ELEM "x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

__device__ __forceinline__ elem to_elem(float x) { return elem{(unsigned short)(pack2(x, 0.0f) & 0xffff)}; }

// Eight numbers in one 16-byte access.
typedef uint4 elemx8;

__device__ __forceinline__ void unpack(const elemx8& p, float* f) {
  const u32 v[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) unpack2(v[i], f[2 * i], f[2 * i + 1]);
}

__device__ __forceinline__ elemx8 pack(const float* f) {
  return make_uint4(pack2(f[0], f[1]), pack2(f[2], f[3]), pack2(f[4], f[5]), pack2(f[6], f[7]));
}

// Shared-memory address as the instructions below take it.
__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory without passing registers; zeros when `valid` is false.
__device__ __forceinline__ void cp_async16(u32 dst, const void* src, bool valid) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes));
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr));
}
__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], u32 addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr));
}
// Transpose of one 8x8 matrix of 16-bit elements held by the warp.
__device__ __forceinline__ u32 movmatrix_trans(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
  return y;
}

// d += a * b: a is 16x16 row-major, b 16x8 column-major, d 16x8 in float. With g = lane / 4, t = lane % 4:
// a = {(g, 2t..), (g + 8, 2t..), (g, 8 + 2t..), (g + 8, 8 + 2t..)}, b = {(2t.., g), (8 + 2t.., g)},
// d = {(g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)}.
__device__ __forceinline__ void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32." ELEM "." ELEM ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// KV pool of one layer as the kernels see it: `[block][K|V][kv_head][BLOCK_SIZE][HEAD_DIM]`.
__device__ __forceinline__ long kv_offset(long block, int v, int kv_heads, int head) {
  return ((block * 2 + v) * kv_heads + head) * (long)(BLOCK_SIZE * HEAD_DIM);
}

// Programmatic dependent launch (compute capability 9.0 and later): a kernel launched as "dependent" may start while
// the one before it still runs. It may read weights and the step's inputs at once; `wait_for_previous` returns when
// every kernel before it has ended and what they wrote is visible. Rules that make a chain of such kernels correct:
// every thread calls `wait_for_previous` before it touches activations and before it ends, so that "the one before has
// ended" means "all before have ended"; activations are read with `load_*` below, which the compiler cannot move over
// the wait (a plain load of a `const __restrict__` pointer it could).
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// The next kernel may start as soon as every CTA of this one has called this or ended.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

__device__ __forceinline__ uint4 load_cg(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ float4 load_float4_cg(const float* p) {
  const uint4 v = load_cg(p);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ __forceinline__ float2 load_float2_cg(const float* p) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];\n" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u32 load_u32_cg(const void* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
  return v;
}
