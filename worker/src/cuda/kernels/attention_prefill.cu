// Prefill attention over paged KV: causal, with cached prefixes, chunks of any length, several sequences in a launch.
// Path for every compute capability from 8.0 on; `attention_prefill_sm90.cu` is the fast one on Hopper.
//
// Technique: FlashAttention-2 (Dao 2023): 128 queries of one head a CTA, 8 warps of 16 rows with queries in registers,
// keys and values by blocks of 64 tokens through a two-stage cp.async pipeline, online softmax in base 2.
//
//   q            [T, q_stride] queries after RoPE: head h at h * HEAD_DIM
//   tiles        [tiles, 4]: row of the step, first query token in the row, its flat token index, its position
//                (longest context first, so that the last CTAs are short)
//   row_lens     [R] query tokens of each row
//   block_tables [R, table_stride]
//   out          [T, heads * HEAD_DIM]
//   window       keys that a query sees, its own included; 0: all up to its own position
// The keys must be in the pool already. Grid (tiles, heads), block 256,
// dynamic shared memory 4 * 64 * HEAD_DIM * 2 bytes.
#include "common.cuh"

constexpr int M = 128, N = 64;
constexpr int ROW_BYTES = HEAD_DIM * 2, CHUNKS = HEAD_DIM / 8, TILE_BYTES = N * ROW_BYTES;
constexpr int KSTEPS = HEAD_DIM / 16, NT = N / 8, DT = HEAD_DIM / 8;

__device__ __forceinline__ u32 tile_at(int row, int chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4); }

extern "C" __global__ void __launch_bounds__(256, 1)
    prefill_attention(elem* __restrict__ out, const elem* __restrict__ q, const elem* __restrict__ pool,
                      const u32* __restrict__ tiles, const u32* __restrict__ row_lens,
                      const u32* __restrict__ block_tables, int heads, int kv_heads, int q_stride, int table_stride,
                      float scale_log2, int window) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const u32* tile = tiles + blockIdx.x * 4;
  const int row = tile[0], q0 = tile[1], flat0 = tile[2], pos0 = tile[3];
  const int head = blockIdx.y, kv = head / (heads / kv_heads);
  const int rows = min(M, (int)row_lens[row] - q0);           // query tokens in this tile
  const int context = pos0 + rows;                            // keys that any of them sees
  const int pages = (context + N - 1) / N;
  // The first page that the first query sees; those behind it see no earlier one.
  const int page0 = window > 0 ? max(pos0 + 1 - window, 0) / N : 0;
  const u32* table = block_tables + (long)row * table_stride;
  const u32 base = smem(shared);

  auto load = [&](int page) {
    if (page < pages) {
      const elem* k = pool + kv_offset(table[page], 0, kv_heads, kv);
      const elem* v = pool + kv_offset(table[page], 1, kv_heads, kv);
      const u32 at = base + (page & 1) * 2 * TILE_BYTES;
#pragma unroll
      for (int i = threadIdx.x; i < N * CHUNKS; i += 256) {
        const int r = i / CHUNKS, c = i % CHUNKS;
        const bool ok = page * N + r < context;
        cp_async16(at + tile_at(r, c), k + r * HEAD_DIM + c * 8, ok);
        cp_async16(at + TILE_BYTES + tile_at(r, c), v + r * HEAD_DIM + c * 8, ok);
      }
    }
    cp_async_commit();
  };

  // Queries straight into A fragments: rows g and g + 8 of this warp's 16.
  u32 qf[KSTEPS][4];
  const int r0 = warp * 16 + g, r1 = r0 + 8;
#pragma unroll
  for (int i = 0; i < KSTEPS; ++i) {
    const elem* p0 = q + (long)(flat0 + r0) * q_stride + head * HEAD_DIM + i * 16 + 2 * t;
    const elem* p1 = q + (long)(flat0 + r1) * q_stride + head * HEAD_DIM + i * 16 + 2 * t;
    qf[i][0] = r0 < rows ? *reinterpret_cast<const u32*>(p0) : 0;
    qf[i][1] = r1 < rows ? *reinterpret_cast<const u32*>(p1) : 0;
    qf[i][2] = r0 < rows ? *reinterpret_cast<const u32*>(p0 + 8) : 0;
    qf[i][3] = r1 < rows ? *reinterpret_cast<const u32*>(p1 + 8) : 0;
  }
  load(page0);

  float o[DT][4];
#pragma unroll
  for (int i = 0; i < DT; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
  float m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};

  for (int page = page0; page < pages; ++page) {
    cp_async_wait<0>();
    __syncthreads();
    load(page + 1);
    const u32 at = base + (page & 1) * 2 * TILE_BYTES;
    // Keys past this warp's last query are invisible to all its rows.
    if (page * N > pos0 + warp * 16 + 15) continue;
    float s[NT][4];
#pragma unroll
    for (int j = 0; j < NT; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < KSTEPS; ++i) {
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        // Two 8-key tiles: (keys 0-7, k 0-7), (keys 0-7, k 8-15), (keys 8-15, k 0-7), (keys 8-15, k 8-15).
        u32 b[4];
        ldmatrix4(b, at + tile_at(j * 8 + (lane & 7) + ((lane >> 4) << 3), 2 * i + ((lane >> 3) & 1)));
        mma16816(s[j], qf[i], b[0], b[1]);
        mma16816(s[j + 1], qf[i], b[2], b[3]);
      }
    }
    const bool diagonal = page * N + N - 1 > pos0 + warp * 16;
    // A row whose keys of a page are all in front of its window takes weights of 1 from them, which the first key that it
    // sees then scales to 0.
    const bool edge = window > 0 && page * N <= pos0 + warp * 16 + 15 - window;
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] *= scale_log2;
        if (diagonal || edge) {
          const int key = page * N + j * 8 + 2 * t + (i & 1), query = pos0 + (i < 2 ? r0 : r1);
          if (key > query || (edge && key <= query - window)) s[j][i] = NEG_INF;
        }
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float mx = NEG_INF;
#pragma unroll
      for (int j = 0; j < NT; ++j) mx = fmaxf(mx, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
      mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
      mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
      const float mn = fmaxf(m[h], mx), r = exp2f(m[h] - mn);
      m[h] = mn;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        s[j][2 * h] = exp2f(s[j][2 * h] - mn);
        s[j][2 * h + 1] = exp2f(s[j][2 * h + 1] - mn);
        sum += s[j][2 * h] + s[j][2 * h + 1];
      }
      l[h] = l[h] * r + sum;
#pragma unroll
      for (int i = 0; i < DT; ++i) {
        o[i][2 * h] *= r;
        o[i][2 * h + 1] *= r;
      }
    }
#pragma unroll
    for (int j = 0; j < NT / 2; ++j) {
      const u32 a[4] = {pack2(s[2 * j][0], s[2 * j][1]), pack2(s[2 * j][2], s[2 * j][3]),
                        pack2(s[2 * j + 1][0], s[2 * j + 1][1]), pack2(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int i = 0; i < DT; i += 2) {
        u32 b[4];
        ldmatrix4_trans(b, at + TILE_BYTES + tile_at(j * 16 + (lane & 15), i + (lane >> 4)));
        mma16816(o[i], a, b[0], b[1]);
        mma16816(o[i + 1], a, b[2], b[3]);
      }
    }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    l[h] += __shfl_xor_sync(0xffffffffu, l[h], 1);
    l[h] += __shfl_xor_sync(0xffffffffu, l[h], 2);
    const int r = h == 0 ? r0 : r1;
    if (r < rows) {
      const float inv = 1.0f / l[h];
      elem* dst = out + ((long)(flat0 + r) * heads + head) * HEAD_DIM + 2 * t;
#pragma unroll
      for (int i = 0; i < DT; ++i)
        *reinterpret_cast<u32*>(dst + i * 8) = pack2(o[i][2 * h] * inv, o[i][2 * h + 1] * inv);
    }
  }
}
