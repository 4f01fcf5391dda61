// Prefill attention over paged KV on Hopper (compute capability 9.0, target sm_90a); HEAD_DIM 128, BLOCK_SIZE 64.
// Same task and arguments as `attention_prefill.cu`, plus two tensor maps.
//
// Technique: FlashAttention-3 (Shah et al. 2024): one producer warp copies blocks with TMA into 128-byte swizzled
// shared memory; two consumer warpgroups of 64 queries each run wgmma. The scores of the next 128 keys are issued
// before the softmax of the current ones, so that tensor cores work while exponentials are computed. Keys are walked
// from the diagonal down, so only the first one or two steps mask, and with a window the last ones.
//
//   map_q     tensor map over the step's qkv activations [T, q_stride], box 64 x 64, 128-byte swizzle
//   map_kv    tensor map over one layer's pool as rows of HEAD_DIM [blocks * 2 * kv_heads * 64, HEAD_DIM], box 64 x 64
// Value rows behind a sequence's end, in its last block, must be finite: `rope_append` zeroes them.
// Grid (heads, tiles), block 384, dynamic shared memory SMEM_BYTES.
#include "common.cuh"
#include "hopper.cuh"

static_assert(HEAD_DIM == 128 && BLOCK_SIZE == 64, "written for this shape");

constexpr int M = 128, N = 128, STAGES = 2;
constexpr int BOX_BYTES = 64 * 128;                      // 64 rows of 64 elements
constexpr int TILE_BYTES = 128 * HEAD_DIM * 2;           // 128 rows: [half of the head][128 rows][128 bytes]
constexpr int HALF_BYTES = TILE_BYTES / 2;
// Q, then K and V stages, then barriers; 1024 more to align the base to the swizzle pattern.
constexpr int SMEM_BYTES = TILE_BYTES * (1 + 2 * STAGES) + 128 + 1024;

// Keeps the compiler from moving uses of accumulators over a wait.
__device__ __forceinline__ void keep(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d (64 rows a warpgroup x 128) = a * b (+ d when `accumulate`): a and b K-major in shared memory.
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEM "." ELEM " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(accumulate));
}

// d += a * b: a in registers (as for mma.sync), b N-major in shared memory, that is as values lie: [token][dim].
__device__ __forceinline__ void wgmma_rs(float (&d)[64], const u32* a, u64 b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." ELEM "." ELEM " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// scores = Q * K^T for this warpgroup's 64 queries and 128 keys.
__device__ __forceinline__ void issue_scores(float (&s)[64], u32 q, u32 k) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 16; ++i) {
    const u32 at = (i >> 2) * HALF_BYTES + (i & 3) * 32;  // 64 elements of a row lie in each half
    wgmma_ss(s, descriptor(q + at, 16, 1024), descriptor(k + at, 16, 1024), i > 0);
  }
  wgmma_commit();
}

// out += P * V: 8 steps of 16 tokens; the two halves of the head are HALF_BYTES apart.
__device__ __forceinline__ void issue_values(float (&o)[64], const u32 (&p)[32], u32 v) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < N / 16; ++i) wgmma_rs(o, p + 4 * i, descriptor(v + i * 16 * 128, HALF_BYTES, 1024));
  wgmma_commit();
}

extern "C" __global__ void __launch_bounds__(384, 1)
    prefill_attention_sm90(elem* __restrict__ out, const __grid_constant__ TensorMap map_q,
                           const __grid_constant__ TensorMap map_kv, const u32* __restrict__ tiles,
                           const u32* __restrict__ row_lens, const u32* __restrict__ block_tables, int heads,
                           int kv_heads, int layer_row0, int table_stride, float scale_log2, int window) {
  extern __shared__ unsigned char raw[];
  const u32 base = (smem(raw) + 1023) & ~1023u;
  const u32 sq = base, sk = sq + TILE_BYTES, sv = sk + STAGES * TILE_BYTES, bars = sv + STAGES * TILE_BYTES;
  const u32 full_q = bars, full_k = bars + 8, full_v = full_k + 8 * STAGES, empty_k = full_v + 8 * STAGES,
            empty_v = empty_k + 8 * STAGES;

  const int group_id = threadIdx.x >> 7;  // 0 produces, 1 and 2 consume
  const u32* tile = tiles + blockIdx.y * 4;
  const int row = tile[0], q0 = tile[1], flat0 = tile[2], pos0 = tile[3];
  const int head = blockIdx.x, kv = head / (heads / kv_heads);
  const int rows = min(M, (int)row_lens[row] - q0);
  const int context = pos0 + rows;
  // Steps walk down from the diagonal to the first one that the first query sees; those behind it see no earlier one.
  const int step0 = window > 0 ? max(pos0 + 1 - window, 0) / N : 0;
  const int top = (context + N - 1) / N - 1, steps = top + 1 - step0;
  const int pages = (context + BLOCK_SIZE - 1) / BLOCK_SIZE;

  if (threadIdx.x == 0) {
    barrier_init(full_q, 1);
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full_k + 8 * i, 1);
      barrier_init(full_v + 8 * i, 1);
      barrier_init(empty_k + 8 * i, 2);
      barrier_init(empty_v + 8 * i, 2);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;\n" ::: "memory");
  }
  __syncthreads();

  if (group_id == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;\n");
    if (threadIdx.x == 0) {
      barrier_expect(full_q, TILE_BYTES);
      for (int half = 0; half < 2; ++half)
        for (int r = 0; r < 2; ++r)
          tma_load(sq + half * HALF_BYTES + r * BOX_BYTES, &map_q, head * HEAD_DIM + half * 64, flat0 + r * 64, full_q);
      const u32* table = block_tables + (long)row * table_stride;
      for (int i = 0; i < steps; ++i) {
        const int step = top - i, stage = i % STAGES;
        const u32 parity = ((i / STAGES) & 1) ^ 1;
        // A second block behind the end is replaced by the first: its keys are masked.
        const int a = table[2 * step], b = 2 * step + 1 < pages ? table[2 * step + 1] : a;
        for (int v = 0; v < 2; ++v) {
          const u32 full = (v ? full_v : full_k) + 8 * stage, empty = (v ? empty_v : empty_k) + 8 * stage;
          const u32 dst = (v ? sv : sk) + stage * TILE_BYTES;
          const int ya = layer_row0 + ((a * 2 + v) * kv_heads + kv) * BLOCK_SIZE;
          const int yb = layer_row0 + ((b * 2 + v) * kv_heads + kv) * BLOCK_SIZE;
          barrier_wait(empty, parity);
          barrier_expect(full, TILE_BYTES);
          for (int half = 0; half < 2; ++half) {
            tma_load(dst + half * HALF_BYTES, &map_kv, half * 64, ya, full);
            tma_load(dst + half * HALF_BYTES + BOX_BYTES, &map_kv, half * 64, yb, full);
          }
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;\n");
  const int wg = group_id - 1, warp = (threadIdx.x & 127) >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const bool signals = (threadIdx.x & 127) == 0;
  const int r0 = wg * 64 + warp * 16 + g, r1 = r0 + 8;
  const u32 q = sq + wg * 64 * 128;

  float o[64], s[64], m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f}, rescale[2];
  u32 p[32];
#pragma unroll
  for (int i = 0; i < 64; ++i) o[i] = 0.0f;

  // Mask, running maximum, exponentials; leaves them in s and the factor for what was summed before in `rescale`.
  auto softmax = [&](int step) {
    const bool edge = window > 0 && step * N <= pos0 + wg * 64 + 63 - window;
    if (edge || step * N + N - 1 > pos0 + wg * 64) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int key = step * N + (i >> 2) * 8 + 2 * t + (i & 1), query = pos0 + ((i & 2) ? r1 : r0);
        if (key > query || (edge && key <= query - window)) s[i] = NEG_INF;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float mx = m[h];
#pragma unroll
      for (int j = 0; j < 16; ++j) mx = fmaxf(mx, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
      mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
      mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
      rescale[h] = exp2f((m[h] - mx) * scale_log2);
      m[h] = mx;
      const float shift = mx * scale_log2;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float x = exp2f(s[4 * j + 2 * h] * scale_log2 - shift);
        const float y = exp2f(s[4 * j + 2 * h + 1] * scale_log2 - shift);
        s[4 * j + 2 * h] = x;
        s[4 * j + 2 * h + 1] = y;
        sum += x + y;
      }
      l[h] = l[h] * rescale[h] + sum;
    }
  };
  auto to_p = [&]() {
#pragma unroll
    for (int j = 0; j < 32; ++j) p[j] = pack2(s[2 * j], s[2 * j + 1]);
  };

  barrier_wait(full_q, 0);
  barrier_wait(full_k, 0);
  issue_scores(s, q, sk);
  wgmma_wait<0>();
  keep(s);
  if (signals) barrier_arrive(empty_k);
  softmax(top);
  to_p();
  for (int i = 1; i < steps; ++i) {
    const int stage = i % STAGES, before = (i - 1) % STAGES;
    barrier_wait(full_k + 8 * stage, (i / STAGES) & 1);
    issue_scores(s, q, sk + stage * TILE_BYTES);
    barrier_wait(full_v + 8 * before, ((i - 1) / STAGES) & 1);
    issue_values(o, p, sv + before * TILE_BYTES);
    wgmma_wait<1>();
    keep(s);
    if (signals) barrier_arrive(empty_k + 8 * stage);
    softmax(top - i);
    wgmma_wait<0>();
    keep(o);
    if (signals) barrier_arrive(empty_v + 8 * before);
    to_p();
#pragma unroll
    for (int j = 0; j < 64; ++j) o[j] *= rescale[(j >> 1) & 1];
  }
  const int last = (steps - 1) % STAGES;
  barrier_wait(full_v + 8 * last, ((steps - 1) / STAGES) & 1);
  issue_values(o, p, sv + last * TILE_BYTES);
  wgmma_wait<0>();
  keep(o);

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    l[h] += __shfl_xor_sync(0xffffffffu, l[h], 1);
    l[h] += __shfl_xor_sync(0xffffffffu, l[h], 2);
    const int r = h ? r1 : r0;
    if (r < rows) {
      const float inv = 1.0f / l[h];
      elem* dst = out + ((long)(flat0 + r) * heads + head) * HEAD_DIM + 2 * t;
#pragma unroll
      for (int j = 0; j < 16; ++j)
        *reinterpret_cast<u32*>(dst + j * 8) = pack2(o[4 * j + 2 * h] * inv, o[4 * j + 2 * h + 1] * inv);
    }
  }
}
