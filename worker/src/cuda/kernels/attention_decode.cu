// Decode attention over paged KV: one query token per sequence, any context lengths, in one launch.
//
// Technique: flash-decoding (Dao et al. 2023) with the work split evenly as in stream-K (Osama et al. 2023), and the
// query heads of one KV head packed into the N side of the tensor-core tile, so that keys and values are read once:
//   scores^T [16 tokens x 8 heads] = K [16 x HEAD_DIM] * Q^T,   out^T [HEAD_DIM x 8 heads] += V^T * P^T.
//
// Work unit: one block of one (sequence, KV head). Units are numbered sequence by sequence, head by head; CTA c takes
// units [c * chunk, (c + 1) * chunk). Within a block each of the 4 warps has its own 16 tokens with a softmax of its
// own, and its own cp.async pipeline, so that the main loop has no barrier. A (sequence, head) that several CTAs
// share is combined by the one that arrives last; the counters are zero again afterwards, so a CUDA graph can replay.
//
//   q            [T, q_stride] queries after RoPE: head h at h * HEAD_DIM
//   q_rows       [B] which token of the step each sequence's query is
//   pool         one layer's KV pool
//   block_tables [B, table_stride]
//   context_lens [B], each at least 1 (0: the row is padding and nothing is written)
//   unit_ends    [B] inclusive prefix sums of blocks(context) * kv_heads: see `plan_decode`, with the same `window`
//   window       tokens that a query sees, its own included; 0: all. Blocks in front of it are not read
//   out          [T, heads * HEAD_DIM]
//   partials     [gridDim.x, 2, 8, PART] float: a head's sum of values, then its maximum and its sum of weights
//   counters     [B * kv_heads], zero
// Limits: heads / kv_heads <= 8; HEAD_DIM 64 or 128; BLOCK_SIZE 64; B <= 1024. Block 128 threads; any grid.
//
// As a dependent launch (see `common.cuh`) it fetches pages before the kernels in front of it have ended: all but a
// sequence's last page, which takes this step's token, were written in earlier steps. `unit_ends` and the other
// inputs must be complete when the first dependent kernel of the chain starts.
#include "common.cuh"

#ifndef STAGES
#define STAGES 3
#endif
static_assert(BLOCK_SIZE == 64, "four warps of 16 tokens");

constexpr int ROW_BYTES = HEAD_DIM * 2;
constexpr int CHUNKS = HEAD_DIM / 8;               // 16-byte pieces of a row
constexpr int TILE_BYTES = 16 * ROW_BYTES;         // 16 tokens of K or V
constexpr int STAGE_BYTES = 2 * TILE_BYTES;        // K and V
constexpr int TILES = HEAD_DIM / 16;
constexpr int PART = HEAD_DIM + 4;                 // a multiple of 16 bytes

// Position of a 16-byte piece in a tile: rows are permuted so that the 8 rows of an ldmatrix hit different banks.
__device__ __forceinline__ u32 tile_at(int row, int chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4); }

// Blocks of a context in front of a sliding window: none of their tokens is seen.
__device__ __forceinline__ int hidden_blocks(int context, int window) {
  return window > 0 ? max(context - window, 0) / BLOCK_SIZE : 0;
}

// Once per step, for all layers with this window. unit_ends[b] = sum over sequences up to b of visible blocks * kv_heads. Grid (1), block 1024.
extern "C" __global__ void plan_decode(u32* __restrict__ unit_ends, const u32* __restrict__ context_lens, int batch,
                                       int kv_heads, int window) {
  __shared__ u32 sums[32];
  const int i = threadIdx.x, lane = i & 31, warp = i >> 5;
  u32 x = 0;
  if (i < batch) {
    const int context = context_lens[i];
    x = ((context + BLOCK_SIZE - 1) / BLOCK_SIZE - hidden_blocks(context, window)) * kv_heads;
  }
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    u32 y = __shfl_up_sync(0xffffffffu, x, o);
    if (lane >= o) x += y;
  }
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  if (warp == 0) {
    u32 s = sums[lane];
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      u32 y = __shfl_up_sync(0xffffffffu, s, o);
      if (lane >= o) s += y;
    }
    sums[lane] = s;
  }
  __syncthreads();
  if (i < batch) unit_ends[i] = x + (warp > 0 ? sums[warp - 1] : 0);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention(elem* out, const elem* q, const elem* pool, const u32* __restrict__ q_rows,
                     const u32* __restrict__ block_tables, const u32* __restrict__ context_lens,
                     const u32* __restrict__ unit_ends, float* partials, u32* counters, int batch,
                     int heads, int kv_heads, int q_stride, int table_stride, float scale_log2, int window) {
  extern __shared__ __align__(128) unsigned char shared[];
  // Over the pipeline's memory, once that has drained.
  float(*comb_o)[8][HEAD_DIM + 1] = reinterpret_cast<float(*)[8][HEAD_DIM + 1]>(shared);
  static_assert(4 * 8 * (HEAD_DIM + 1) * 4 <= 4 * STAGES * STAGE_BYTES, "fits over the pipeline");
  __shared__ float comb_m[4][8], comb_l[4][8];
  __shared__ u32 arrived;

  let_next_start();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int group = heads / kv_heads;
  const u32 total = unit_ends[batch - 1];
  const u32 chunk = (total + gridDim.x - 1) / gridDim.x;
  u32 unit = blockIdx.x * chunk;
  const u32 stop = min(total, unit + chunk);
  if (unit >= stop) {
    wait_for_previous();
    return;
  }
  const u32 first_unit = unit;

  // The sequence that the first unit belongs to.
  int lo = 0, hi = batch - 1;
  while (lo < hi) {
    int mid = (lo + hi) >> 1;
    if (unit_ends[mid] > unit) hi = mid; else lo = mid + 1;
  }
  int seq = lo;
  const u32 stage0 = smem(shared) + warp * (STAGES * STAGE_BYTES);

  while (unit < stop) {
    const u32 seq_begin = seq > 0 ? unit_ends[seq - 1] : 0;
    // From here on the context begins with the first block that is seen; of that block the first tokens may not be.
    const int whole_context = context_lens[seq];
    const int hidden = hidden_blocks(whole_context, window);
    const int context = whole_context - hidden * BLOCK_SIZE;
    const int unseen = window > 0 ? max(context - window, 0) : 0;
    const int blocks = (context + BLOCK_SIZE - 1) / BLOCK_SIZE;
    if (blocks == 0) { ++seq; continue; }
    const int kv = (unit - seq_begin) / blocks;
    const u32 seg_begin = seq_begin + kv * blocks, seg_end = seg_begin + blocks;
    const int page_begin = unit - seg_begin;
    const int pages = min(seg_end, stop) - unit;
    const long token = q_rows[seq];
    const u32* table = block_tables + (long)seq * table_stride + hidden + page_begin;
    // Tokens of this segment that exist, counted from its first page.
    const int valid = context - page_begin * BLOCK_SIZE;

    auto load = [&](int page) {
      if (page < pages) {
        const int token0 = page * BLOCK_SIZE + warp * 16;
        if (token0 < valid) {
          const elem* k = pool + kv_offset(table[page], 0, kv_heads, kv) + warp * 16 * HEAD_DIM;
          const elem* v = pool + kv_offset(table[page], 1, kv_heads, kv) + warp * 16 * HEAD_DIM;
          const u32 base = stage0 + (page % STAGES) * STAGE_BYTES;
#pragma unroll
          for (int i = lane; i < 16 * CHUNKS; i += 32) {
            const int row = i / CHUNKS, c = i % CHUNKS;
            const bool ok = token0 + row < valid;
            cp_async16(base + tile_at(row, c), k + row * HEAD_DIM + c * 8, ok);
            cp_async16(base + TILE_BYTES + tile_at(row, c), v + row * HEAD_DIM + c * 8, ok);
          }
        }
      }
      cp_async_commit();
    };
    // Pages in front of the sequence's last may be fetched at once, that one when this step's token is in it.
    const int early = unit == first_unit ? min(STAGES - 1, blocks - 1 - page_begin) : 0;
    for (int p = 0; p < early; ++p) load(p);
    if (unit == first_unit) wait_for_previous();
    for (int p = early; p < STAGES - 1; ++p) load(p);

    // Q^T as the B operand: head g, 2t.. of each 16.
    u32 qf[TILES][2];
    const elem* qrow = q + token * q_stride + (kv * group + g) * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      qf[i][0] = g < group ? load_u32_cg(qrow + i * 16 + 2 * t) : 0;
      qf[i][1] = g < group ? load_u32_cg(qrow + i * 16 + 8 + 2 * t) : 0;
    }
    float o[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    float m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};

    for (int page = 0; page < pages; ++page) {
      load(page + STAGES - 1);
      cp_async_wait<STAGES - 1>();
      __syncwarp();
      const int left = valid - page * BLOCK_SIZE - warp * 16;  // of this warp's 16 tokens, how many exist
      // and how many of them lie in front of the window. With none to see there would be no maximum.
      const int skip = unseen - (page_begin + page) * BLOCK_SIZE - warp * 16;
      if (left > 0 && skip < min(left, 16)) {
        const u32 base = stage0 + (page % STAGES) * STAGE_BYTES;
        // Two chains of products, since each waits for the one before it in its chain.
        float s[4] = {0.0f, 0.0f, 0.0f, 0.0f}, s2[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const int row = lane & 15;
#pragma unroll
        for (int i = 0; i < TILES; i += 2) {
          u32 a[4], b[4];
          ldmatrix4(a, base + tile_at(row, 2 * i + (lane >> 4)));
          ldmatrix4(b, base + tile_at(row, 2 * i + 2 + (lane >> 4)));
          mma16816(s, a, qf[i][0], qf[i][1]);
          mma16816(s2, b, qf[i + 1][0], qf[i + 1][1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[i] += s2[i];
        // s[0], s[1]: token g, heads 2t and 2t + 1; s[2], s[3]: token g + 8.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = g + (i >> 1) * 8;
          s[i] = token < left && token >= skip ? s[i] * scale_log2 : NEG_INF;
        }
        float p[4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float mx = fmaxf(s[h], s[2 + h]);
#pragma unroll
          for (int d = 4; d < 32; d <<= 1) mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, d));
          const float mn = fmaxf(m[h], mx), r = exp2f(m[h] - mn);
          m[h] = mn;
          p[h] = exp2f(s[h] - mn);
          p[2 + h] = exp2f(s[2 + h] - mn);
          l[h] = l[h] * r + p[h] + p[2 + h];  // this lane's tokens only; summed over lanes at the end
#pragma unroll
          for (int i = 0; i < TILES; ++i) {
            o[i][h] *= r;
            o[i][2 + h] *= r;
          }
        }
        const u32 b0 = movmatrix_trans(pack2(p[0], p[1])), b1 = movmatrix_trans(pack2(p[2], p[3]));
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
          // V^T tile: 16 dims x 16 tokens, from V rows by transposing: matrices (tok 0-7, dim 0-7), (tok 0-7, dim 8-15),
          // (tok 8-15, dim 0-7), (tok 8-15, dim 8-15) are a[0..4] in that order.
          u32 a[4];
          const int vrow = (lane & 7) + ((lane >> 4) << 3);
          ldmatrix4_trans(a, base + TILE_BYTES + tile_at(vrow, 2 * i + ((lane >> 3) & 1)));
          mma16816(o[i], a, b0, b1);
        }
      }
      __syncwarp();
    }
    cp_async_wait<0>();

    // The four warps' parts become one. comb_o[w][head][dim].
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int d = 4; d < 32; d <<= 1) l[h] += __shfl_xor_sync(0xffffffffu, l[h], d);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      comb_o[warp][2 * t][i * 16 + g] = o[i][0];
      comb_o[warp][2 * t + 1][i * 16 + g] = o[i][1];
      comb_o[warp][2 * t][i * 16 + g + 8] = o[i][2];
      comb_o[warp][2 * t + 1][i * 16 + g + 8] = o[i][3];
    }
    if (g == 0) {
      comb_m[warp][2 * t] = m[0];
      comb_m[warp][2 * t + 1] = m[1];
      comb_l[warp][2 * t] = l[0];
      comb_l[warp][2 * t + 1] = l[1];
    }
    __syncthreads();
    const bool whole = pages == blocks;
    float* part = partials + ((long)blockIdx.x * 2 + (unit == first_unit ? 0 : 1)) * 8 * PART;
    for (int i = threadIdx.x; i < group * HEAD_DIM; i += blockDim.x) {
      const int h = i / HEAD_DIM, d = i % HEAD_DIM;
      const float mm = fmaxf(fmaxf(comb_m[0][h], comb_m[1][h]), fmaxf(comb_m[2][h], comb_m[3][h]));
      float sum = 0.0f, ll = 0.0f;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float r = exp2f(comb_m[w][h] - mm);
        sum += comb_o[w][h][d] * r;
        ll += comb_l[w][h] * r;
      }
      if (whole) {
        out[(token * heads + kv * group + h) * HEAD_DIM + d] = to_elem(sum / ll);
      } else {
        part[h * PART + d] = sum;
        if (d == 0) {
          part[h * PART + HEAD_DIM] = mm;
          part[h * PART + HEAD_DIM + 1] = ll;
        }
      }
    }
    if (!whole) {
      __threadfence();
      __syncthreads();
      u32* counter = counters + seq * kv_heads + kv;
      if (threadIdx.x == 0) arrived = atomicAdd(counter, (u32)pages) + pages;
      __syncthreads();
      if (arrived == (u32)blocks) {
        __threadfence();
        const u32 cta0 = seg_begin / chunk, cta1 = (seg_end - 1) / chunk;
        auto part_of = [&](u32 c) {
          const int slot = c * chunk >= seg_begin ? 0 : 1;  // its first segment, or its last
          return partials + ((long)c * 2 + slot) * 8 * PART;
        };
        // Four neighbouring dims of one head a thread; loads of different CTAs' parts do not wait for each other.
        for (int i = threadIdx.x; i < group * (HEAD_DIM / 4); i += blockDim.x) {
          const int h = i / (HEAD_DIM / 4), d = i % (HEAD_DIM / 4) * 4;
          float mm = NEG_INF;
#pragma unroll 8
          for (u32 c = cta0; c <= cta1; ++c)
            mm = fmaxf(mm, __uint_as_float(load_u32_cg(part_of(c) + h * PART + HEAD_DIM)));
          float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          float ll = 0.0f;
#pragma unroll 4
          for (u32 c = cta0; c <= cta1; ++c) {
            const float* p = part_of(c) + h * PART;
            const float2 ml = load_float2_cg(p + HEAD_DIM);
            const float4 o4 = load_float4_cg(p + d);
            const float r = exp2f(ml.x - mm);
            sum.x += o4.x * r, sum.y += o4.y * r, sum.z += o4.z * r, sum.w += o4.w * r;
            ll += ml.y * r;
          }
          const float inv = 1.0f / ll;
          *reinterpret_cast<uint2*>(out + (token * heads + kv * group + h) * HEAD_DIM + d) =
              make_uint2(pack2(sum.x * inv, sum.y * inv), pack2(sum.z * inv, sum.w * inv));
        }
        if (threadIdx.x == 0) *counter = 0;
      }
    }
    unit += pages;
    if (unit == unit_ends[seq]) ++seq;
    __syncthreads();  // `comb_o` has been read: the pipeline's memory is free
  }
}
