// Everything between the matrix products: embedding, RMSNorm, RoPE with the KV append, SiLU·mul.
//
// All are bound by memory: 16-byte accesses, one pass, no intermediate in device memory. T is the number of tokens of
// the step. Arithmetic is float; storage bf16.
#include "common.cuh"

// Rows of the embedding table: out[T, hidden] = table[ids[t]].
// An id with bit 31 set stands for the token that the step before drew: entry ids[t] & 0x7fffffff of `sampled`.
// Grid (T), block 256. hidden is a multiple of 8. Ids at or over `vocab` read row 0 (the engine refuses them before).
extern "C" __global__ void embed(bf16* __restrict__ out, const bf16* __restrict__ table, const u32* __restrict__ ids,
                                 const u32* __restrict__ sampled, int hidden, u32 vocab) {
  const long t = blockIdx.x;
  u32 id = ids[t];
  if (id >> 31) id = sampled[id & 0x7fffffffu];
  if (id >= vocab) id = 0;
  const bf16x8* src = reinterpret_cast<const bf16x8*>(table + (long)id * hidden);
  bf16x8* dst = reinterpret_cast<bf16x8*>(out + t * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += blockDim.x) dst[i] = src[i];
}

// out = residual / rms(residual) * weight. (What is added to the residual stream, the product before has added.)
// residual, out: [T, hidden]. Grid (T), block 32..1024, hidden a multiple of 8 and at most 8 * 4 * blockDim.
extern "C" __global__ void rms_norm(bf16* __restrict__ out, const bf16* __restrict__ residual,
                                    const bf16* __restrict__ weight, int hidden, float eps) {
  __shared__ float partial[32];
  const long base = (long)blockIdx.x * hidden;
  const int n = hidden / 8;
  bf16x8 keep[4];
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      float f[8];
      keep[j] = reinterpret_cast<const bf16x8*>(residual + base)[i];
      unpack(keep[j], f);
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += f[k] * f[k];
    }
  }
  const float scale = rsqrtf(block_sum(sum, partial) / hidden + eps);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      float f[8], w[8];
      unpack(keep[j], f);
      unpack(reinterpret_cast<const bf16x8*>(weight)[i], w);
#pragma unroll
      for (int k = 0; k < 8; ++k) f[k] = f[k] * scale * w[k];
      reinterpret_cast<bf16x8*>(out + base)[i] = pack(f);
    }
  }
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
extern "C" __global__ void rope_append(bf16* __restrict__ qkv, bf16* __restrict__ pool,
                                       const u32* __restrict__ positions, const u32* __restrict__ slots,
                                       const float* __restrict__ cos_sin, const bf16* __restrict__ q_norm,
                                       const bf16* __restrict__ k_norm, int tokens, int heads, int kv_heads,
                                       float eps) {
  constexpr int HALF = HEAD_DIM / 2, PER = HALF / 32;  // elements of each half per lane
  static_assert(HALF % 32 == 0, "a head is at least 64 wide");
  const int all = heads + 2 * kv_heads;
  const long item = (long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (item >= (long)tokens * all) return;
  const int lane = threadIdx.x & 31, head = item % all;
  const long t = item / all;
  bf16* row = qkv + (t * all + head) * HEAD_DIM;
  float a[PER], b[PER];
  // Two neighbours at once where a lane has two.
  if (PER == 2) {
    const u32 x = *reinterpret_cast<const u32*>(row + lane * PER);
    const u32 y = *reinterpret_cast<const u32*>(row + HALF + lane * PER);
    a[0] = __uint_as_float(x << 16), a[PER - 1] = __uint_as_float(x & 0xffff0000u);
    b[0] = __uint_as_float(y << 16), b[PER - 1] = __uint_as_float(y & 0xffff0000u);
  } else {
    a[0] = to_float(row[lane]);
    b[0] = to_float(row[HALF + lane]);
  }
  const bool value = head >= heads + kv_heads, key = !value && head >= heads;
  const bf16* norm = value ? nullptr : key ? k_norm : q_norm;
  if (norm != nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; ++i) sum += a[i] * a[i] + b[i] * b[i];
    const float scale = rsqrtf(warp_sum(sum) / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      a[i] = a[i] * scale * to_float(norm[lane * PER + i]);
      b[i] = b[i] * scale * to_float(norm[HALF + lane * PER + i]);
    }
  }
  if (!value) {
    const float* cs = cos_sin + (long)positions[t] * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const float c = cs[lane * PER + i], s = cs[HALF + lane * PER + i];
      const float x = a[i] * c - b[i] * s, y = b[i] * c + a[i] * s;
      a[i] = x;
      b[i] = y;
    }
  }
  bf16* dst = row;
  if (key || value) {
    if (slots[t] == ~0u) return;
    const u32 slot = slots[t] & 0x7fffffffu;
    const int kv = value ? head - heads - kv_heads : head - heads;
    dst = pool + kv_offset(slot / BLOCK_SIZE, value, kv_heads, kv) + (long)(slot % BLOCK_SIZE) * HEAD_DIM;
    if (value && slots[t] >> 31) {
      const int rest = (BLOCK_SIZE - 1 - (int)(slot % BLOCK_SIZE)) * HEAD_DIM / 8;
      uint4* tail = reinterpret_cast<uint4*>(dst + HEAD_DIM);
      for (int i = lane; i < rest; i += 32) tail[i] = make_uint4(0, 0, 0, 0);
    }
  }
  if (PER == 2) {
    *reinterpret_cast<u32*>(dst + lane * PER) = pack2(a[0], a[PER - 1]);
    *reinterpret_cast<u32*>(dst + HALF + lane * PER) = pack2(b[0], b[PER - 1]);
  } else {
    dst[lane] = to_bf16(a[0]);
    dst[HALF + lane] = to_bf16(b[0]);
  }
}

// out[T, n] = silu(gate) * up, with gate_up [T, 2n], gates first. n is a multiple of 8.
// Grid-stride over T * n / 8 pieces, block 256.
extern "C" __global__ void silu_mul(bf16* __restrict__ out, const bf16* __restrict__ gate_up, int tokens, int n) {
  const int per_row = n / 8;
  const long total = (long)tokens * per_row;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long)gridDim.x * blockDim.x) {
    const long t = i / per_row;
    const int c = i % per_row;
    const bf16x8* row = reinterpret_cast<const bf16x8*>(gate_up + t * 2 * n);
    float g[8], u[8];
    unpack(row[c], g);
    unpack(row[per_row + c], u);
#pragma unroll
    for (int k = 0; k < 8; ++k) g[k] = g[k] / (1.0f + __expf(-g[k])) * u[k];
    reinterpret_cast<bf16x8*>(out + t * n)[c] = pack(g);
  }
}

// Rows that the head needs: out[R, hidden] = x[rows[r]]. Grid (R), block 256.
extern "C" __global__ void gather_rows(bf16* __restrict__ out, const bf16* __restrict__ x, const u32* __restrict__ rows,
                                       int hidden) {
  const bf16x8* src = reinterpret_cast<const bf16x8*>(x + (long)rows[blockIdx.x] * hidden);
  bf16x8* dst = reinterpret_cast<bf16x8*>(out + (long)blockIdx.x * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += blockDim.x) dst[i] = src[i];
}
