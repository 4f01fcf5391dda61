// Matrix products of a decode step on Hopper (target sm_90a): few tokens, so that time is what streaming the weights
// takes. parts[., tokens, n] = x[tokens, k] * weight[n, k]^T, in float, cut as `split.cuh` says.
//
// Technique: weights as the wide operand ("swap AB", as in TensorRT-LLM and vLLM's Machete): wgmma with 64 weight rows
// as M and 8 to 64 tokens as N. One producer thread keeps a ring of about 120 KiB full with TMA; two warpgroups
// multiply. With programmatic dependent launch the ring is filled with weights, which no kernel writes, while the
// kernels before this one still run. The ring takes more than half of an SM's shared memory, so that an SM has one
// product's CTA at a time (beside it a CTA of decode attention fits): where two fitted, the CTAs of the next product
// crowded on the SMs that were free first, and steps were up to 15 % slower. (Having a product that ends fetch the next
// one's weights into the L2 cache made steps slower; bench/gpu/NOTEBOOK.md has the figures.)
//
//   parts  [planes, tokens, n] float: plane p of a tile is the p-th CTA's that has a share of it
//   map_w  tensor map over weight [n, k], box 128 rows x 64, 128-byte swizzle
//   map_x  tensor map over x [capacity, k], box TOKENS rows x 64, 128-byte swizzle; rows behind `tokens` are read but
//          count for nothing
// Limits: tokens <= TOKENS. Rows and inputs that do not fill a tile read as zeros. Grid: any number of CTAs up to
// `units`; block 288; dynamic shared memory ring_bytes(TOKENS).
#include "hopper.cuh"
#include "split.cuh"

constexpr int W_BYTES = SPLIT_ROWS * SPLIT_INPUTS * 2;
constexpr int CONSUMERS = 2;
constexpr u64 EVICT_FIRST = 0x12f0000000000000ull;  // L2 policy as createpolicy.fractional.L2::evict_first makes it

// A weight is read once a step: it must not push out what is read again.
__device__ __forceinline__ void tma_load_once(u32 dst, const TensorMap* map, int x, int y, u32 bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(bar), "l"(EVICT_FIRST)
      : "memory");
}

// d (64 weight rows x TOKENS) = a * b (+ d when `accumulate`), 16 inputs, both K-major in shared memory.
__device__ __forceinline__ void multiply(float (&d)[4], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32." ELEM "." ELEM " {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply(float (&d)[8], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." ELEM "." ELEM " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply(float (&d)[16], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." ELEM "." ELEM " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, %16, %17, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b), "r"(accumulate));
}
__device__ __forceinline__ void multiply(float (&d)[32], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." ELEM "." ELEM " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, "
      "1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(accumulate));
}

// TOKENS the tile takes; STAGES of the ring.
template <int TOKENS, int STAGES>
__device__ __forceinline__ void matmul(const Split& split, const TensorMap* map_w, const TensorMap* map_x) {
  extern __shared__ unsigned char raw[];
  constexpr int X_BYTES = TOKENS * SPLIT_INPUTS * 2;
  const u32 base = (smem(raw) + 1023) & ~1023u;
  const u32 ring_x = base + STAGES * W_BYTES, full = ring_x + STAGES * X_BYTES, empty = full + 8 * STAGES;
  const int first = (long)split.units * blockIdx.x / gridDim.x;
  const int stop = (long)split.units * (blockIdx.x + 1) / gridDim.x;
  const int warp = threadIdx.x >> 5;

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, CONSUMERS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;\n" ::: "memory");
  }
  let_next_start();
  __syncthreads();

  if (warp == 4 * CONSUMERS) {
    if ((threadIdx.x & 31) == 0) {
      auto weights = [&](int i, int stage) {
        const int unit = first + i;
        barrier_expect(full + 8 * stage, W_BYTES + X_BYTES);
        tma_load_once(base + stage * W_BYTES, map_w, unit % split.k_blocks * SPLIT_INPUTS,
                      unit / split.k_blocks * SPLIT_ROWS, full + 8 * stage);
      };
      auto inputs = [&](int i, int stage) {
        tma_load(ring_x + stage * X_BYTES, map_x, (first + i) % split.k_blocks * SPLIT_INPUTS, 0, full + 8 * stage);
      };
      const int total = stop - first, ahead = min(total, STAGES);
      for (int i = 0; i < ahead; ++i) weights(i, i);
      wait_for_previous();
      for (int i = 0; i < ahead; ++i) inputs(i, i);
      for (int i = ahead; i < total; ++i) {
        const int stage = i % STAGES;
        barrier_wait(empty + 8 * stage, ((i / STAGES) & 1) ^ 1);
        weights(i, stage);
        inputs(i, stage);
      }
    }
    wait_for_previous();
    return;
  }

  wait_for_previous();
  const int group = warp >> 2, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const bool signals = (threadIdx.x & 127) == 0;
  float acc[TOKENS / 2];
  int i = 0;
  for (int unit = first; unit < stop;) {
    const int tile = unit / split.k_blocks;
    const int count = min((tile + 1) * split.k_blocks, stop) - unit;
    for (int j = 0; j < count; ++j, ++i) {
      const int stage = i % STAGES;
      barrier_wait(full + 8 * stage, (i / STAGES) & 1);
      const u32 w = base + stage * W_BYTES + group * (W_BYTES / CONSUMERS), x = ring_x + stage * X_BYTES;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < SPLIT_INPUTS / 16; ++k)
        multiply(acc, descriptor(w + 32 * k, 16, 1024), descriptor(x + 32 * k, 16, 1024), j + k > 0);
      wgmma_commit();
      // What was issued before the last group is done: its stage is free.
      if (j > 0) {
        wgmma_wait<1>();
        if (signals) barrier_arrive(empty + 8 * ((i - 1) % STAGES));
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int k = 0; k < TOKENS / 2; ++k) asm volatile("" : "+f"(acc[k])::"memory");
    if (signals) barrier_arrive(empty + 8 * ((i - 1) % STAGES));

    const int plane = blockIdx.x - split.owner(tile * split.k_blocks);
    float* out = const_cast<float*>(split.parts) + (long)plane * split.tokens * split.n;
    const int row = tile * SPLIT_ROWS + group * 64 + (warp & 3) * 16 + g;
#pragma unroll
    for (int k = 0; k < TOKENS / 2; ++k) {
      // acc[4j + e]: token 8j + 2t + (e & 1), row g or (e over 1) g + 8.
      const int token = (k >> 2) * 8 + 2 * t + (k & 1), r = row + ((k >> 1) & 1) * 8;
      if (token < split.tokens && r < split.n) out[(long)token * split.n + r] = acc[k];
    }
    unit += count;
  }
}

#define MATMUL(TOKENS, STAGES)                                                                                        \
  extern "C" __global__ void __launch_bounds__(288)                                                                   \
      matmul_decode_##TOKENS(float* parts, const __grid_constant__ TensorMap map_w,                                   \
                             const __grid_constant__ TensorMap map_x, int tokens, int n, int k_blocks, int units) {   \
    matmul<TOKENS, STAGES>(Split{parts, tokens, n, k_blocks, units, (int)gridDim.x}, &map_w, &map_x);                 \
  }
MATMUL(8, 7)
MATMUL(16, 7)
MATMUL(32, 6)
MATMUL(64, 5)
