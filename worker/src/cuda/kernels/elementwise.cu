// Everything between the matrix products: embedding, RMSNorm, RoPE with the KV append, SiLU·mul.
//
// All are bound by memory: 16-byte accesses, one pass, no intermediate in device memory. T is the number of tokens of
// the step. Arithmetic is float.
#include "elementwise.cuh"

// Rows of the embedding table: out[T, hidden] = table[ids[t]].
// An id with bit 31 set stands for the token that the step before drew: entry ids[t] & 0x7fffffff of `sampled`.
// Grid (T), block 256. hidden is a multiple of 8. Ids at or over `vocab` read row 0 (the engine refuses them before).
extern "C" __global__ void embed(elem* __restrict__ out, const elem* __restrict__ table, const u32* __restrict__ ids,
                                 const u32* __restrict__ sampled, int hidden, u32 vocab) {
  const long t = blockIdx.x;
  u32 id = ids[t];
  if (id >> 31) id = sampled[id & 0x7fffffffu];
  if (id >= vocab) id = 0;
  const elemx8* src = reinterpret_cast<const elemx8*>(table + (long)id * hidden);
  elemx8* dst = reinterpret_cast<elemx8*>(out + t * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += blockDim.x) dst[i] = src[i];
}

// out = residual / rms(residual) * weight. (What is added to the residual stream, the product before has added.)
// residual, out: [T, hidden]. Grid (T), block 32..1024, hidden a multiple of 8 and at most 8 * 4 * blockDim.
extern "C" __global__ void rms_norm(elem* __restrict__ out, const elem* __restrict__ residual,
                                    const elem* __restrict__ weight, int hidden, float eps) {
  const long base = (long)blockIdx.x * hidden;
  const int n = hidden / 8;
  elemx8 keep[4];
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      float f[8];
      keep[j] = reinterpret_cast<const elemx8*>(residual + base)[i];
      unpack(keep[j], f);
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += f[k] * f[k];
    }
  }
  norm_pieces(out + base, keep, sum, weight, hidden, eps);
}

// Turns queries and keys by their position, in place for queries, and writes keys and values into the KV pool.
//   qkv       [T, (heads + 2 * kv_heads) * HEAD_DIM], queries first, then keys, then values
//   positions [T]
//   slots     [T] = block * BLOCK_SIZE + offset; ~0: padding, nothing is appended. With bit 31 the token is the last
//             of its sequence in a newly begun block, and the block's value rows behind it are set to zero, since the
//             prefill kernel multiplies them with zero weights and must not meet a stale NaN.
//   cos_sin   [max_position, HEAD_DIM] float: HEAD_DIM / 2 cosines, then as many sines
//   q_norm, k_norm  [HEAD_DIM] or null: per-head RMSNorm before the rotation (Qwen3)
// One warp per (token, head): HEAD_DIM / 32 elements a lane as two halves, since RoPE pairs i with i + HEAD_DIM / 2.
// Grid (ceil(T * (heads + 2 * kv_heads) / 8)), block 256.
extern "C" __global__ void rope_append(elem* __restrict__ qkv, elem* __restrict__ pool,
                                       const u32* __restrict__ positions, const u32* __restrict__ slots,
                                       const float* __restrict__ cos_sin, const elem* __restrict__ q_norm,
                                       const elem* __restrict__ k_norm, int tokens, int heads, int kv_heads,
                                       float eps) {
  constexpr int HALF = HeadShare::HALF, PER = HeadShare::PER;
  const int all = heads + 2 * kv_heads;
  const long item = (long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (item >= (long)tokens * all) return;
  const int lane = threadIdx.x & 31, head = item % all;
  const long t = item / all;
  elem* row = qkv + (t * all + head) * HEAD_DIM;
  HeadShare x;
  if (PER == 2) {  // two neighbours at once
    unpack2(*reinterpret_cast<const u32*>(row + lane * PER), x.a[0], x.a[PER - 1]);
    unpack2(*reinterpret_cast<const u32*>(row + HALF + lane * PER), x.b[0], x.b[PER - 1]);
  } else {
    x.a[0] = to_float(row[lane]);
    x.b[0] = to_float(row[HALF + lane]);
  }
  const bool value = head >= heads + kv_heads, key = !value && head >= heads;
  const elem* norm = value ? nullptr : key ? k_norm : q_norm;
  if (norm != nullptr) x.norm(norm, lane, eps);
  if (!value) {
    const float* cs = cos_sin + (long)positions[t] * HEAD_DIM + lane * PER;
    float c[PER], s[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) c[i] = cs[i], s[i] = cs[HALF + i];
    x.rotate(c, s);
  }
  elem* dst = row;
  if (key || value) dst = pool_row(pool, slots[t], value, kv_heads, head - heads - (value ? kv_heads : 0), lane);
  if (dst != nullptr) x.store(dst, lane);
}

// out[T, n] = silu(gate) * up, with gate_up [T, 2n], gates first. n is a multiple of 8.
// Grid-stride over T * n / 8 pieces, block 256.
extern "C" __global__ void silu_mul(elem* __restrict__ out, const elem* __restrict__ gate_up, int tokens, int n) {
  const int per_row = n / 8;
  const long total = (long)tokens * per_row;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long)gridDim.x * blockDim.x) {
    const long t = i / per_row;
    const int c = i % per_row;
    const elemx8* row = reinterpret_cast<const elemx8*>(gate_up + t * 2 * n);
    float g[8], u[8];
    unpack(row[c], g);
    unpack(row[per_row + c], u);
    silu_mul8(g, u);
    reinterpret_cast<elemx8*>(out + t * n)[c] = pack(g);
  }
}

// Rows that the head needs: out[R, hidden] = x[rows[r]]. Grid (R), block 256.
extern "C" __global__ void gather_rows(elem* __restrict__ out, const elem* __restrict__ x, const u32* __restrict__ rows,
                                       int hidden) {
  const elemx8* src = reinterpret_cast<const elemx8*>(x + (long)rows[blockIdx.x] * hidden);
  elemx8* dst = reinterpret_cast<elemx8*>(out + (long)blockIdx.x * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += blockDim.x) dst[i] = src[i];
}
