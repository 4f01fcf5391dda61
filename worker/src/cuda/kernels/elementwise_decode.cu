// What lies between the products of a decode step on Hopper: norms, RoPE with the KV append, SiLU·mul, each adding up
// the parts that `matmul_decode` left (see `split.cuh`). The arithmetic is that of `elementwise.cu`; here the kernels
// are links of a chain of dependent launches (see `common.cuh`), so that what follows them may start early.
#include "common.cuh"
#include "split.cuh"

// residual += sum of parts (when given); out = residual / rms(residual) * weight.
// residual, out: [T, hidden]. Grid (T), block 32..1024, hidden a multiple of 8 and at most 8 * 4 * blockDim.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_parts(bf16* out, bf16* residual, const float* parts, const bf16* weight, int hidden, float eps,
                   int k_blocks, int units, int ctas) {
  __shared__ float partial[32];
  let_next_start();
  const Split split{parts, (int)gridDim.x, hidden, k_blocks, units, ctas};
  const long base = (long)blockIdx.x * hidden;
  const int n = hidden / 8;
  bf16x8 keep[4];
  // A step's other weights have pushed these out of the L2 cache; held in registers they would be too many.
  for (int i = threadIdx.x; i < n; i += blockDim.x) asm volatile("prefetch.global.L2 [%0];\n" ::"l"(weight + 8 * i));
  wait_for_previous();
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      bf16x8 r = load_cg(residual + base + 8 * i);
      float f[8];
      unpack(r, f);
      if (parts != nullptr) {
        float x[8];
        split.sum8(blockIdx.x, 8 * i, x);
#pragma unroll
        for (int k = 0; k < 8; ++k) f[k] += x[k];
        r = pack(f);
        reinterpret_cast<bf16x8*>(residual + base)[i] = r;
        unpack(r, f);
      }
      keep[j] = r;
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += f[k] * f[k];
    }
  }
  const float scale = rsqrtf(block_sum(sum, partial) / hidden + eps);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      float f[8], g[8];
      unpack(keep[j], f);
      unpack(reinterpret_cast<const bf16x8*>(weight)[i], g);
#pragma unroll
      for (int k = 0; k < 8; ++k) f[k] = f[k] * scale * g[k];
      reinterpret_cast<bf16x8*>(out + base)[i] = pack(f);
    }
  }
}

// The sum of parts [T, (heads + 2 * kv_heads) * HEAD_DIM] and `bias` (or null), rounded to bf16, is what `rope_append`
// takes as qkv; other arguments are as there, and so is what is written: queries to `qkv`, keys and values to the pool.
// One warp per (token, head). Grid (ceil(T * (heads + 2 * kv_heads) / 4)), block 128.
extern "C" __global__ void rope_append_parts(bf16* qkv, bf16* pool, const float* parts, const bf16* bias,
                                             const u32* positions, const u32* slots, const float* cos_sin,
                                             const bf16* q_norm, const bf16* k_norm, int tokens, int heads,
                                             int kv_heads, float eps, int k_blocks, int units, int ctas) {
  constexpr int HALF = HEAD_DIM / 2, PER = HALF / 32;  // elements of each half per lane
  let_next_start();
  const int all = heads + 2 * kv_heads;
  const Split split{parts, tokens, all * HEAD_DIM, k_blocks, units, ctas};
  const int item = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (item >= tokens * all) {
    wait_for_previous();
    return;
  }
  const int lane = threadIdx.x & 31, head = item % all, t = item / all;
  const bool value = head >= heads + kv_heads, key = !value && head >= heads;
  const u32 slot_word = slots[t];
  float c[PER], s[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const float* cs = cos_sin + (long)positions[t] * HEAD_DIM + lane * PER + i;
    c[i] = cs[0];
    s[i] = cs[HALF];
  }
  wait_for_previous();
  float a[PER], b[PER];
  const int column = head * HEAD_DIM + lane * PER;
  if (PER == 2) {
    const float2 x = split.sum2(t, column), y = split.sum2(t, column + HALF);
    a[0] = x.x, a[PER - 1] = x.y, b[0] = y.x, b[PER - 1] = y.y;
  } else {
    a[0] = split.sum1(t, column);
    b[0] = split.sum1(t, column + HALF);
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    if (bias != nullptr) {
      a[i] += to_float(bias[column + i]);
      b[i] += to_float(bias[column + HALF + i]);
    }
    a[i] = to_float(to_bf16(a[i]));
    b[i] = to_float(to_bf16(b[i]));
  }
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
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const float x = a[i] * c[i] - b[i] * s[i], y = b[i] * c[i] + a[i] * s[i];
      a[i] = x;
      b[i] = y;
    }
  }
  bf16* dst = qkv + ((long)t * all + head) * HEAD_DIM;
  if (key || value) {
    if (slot_word == ~0u) return;
    const u32 slot = slot_word & 0x7fffffffu;
    const int kv = value ? head - heads - kv_heads : head - heads;
    dst = pool + kv_offset(slot / BLOCK_SIZE, value, kv_heads, kv) + (long)(slot % BLOCK_SIZE) * HEAD_DIM;
    if (value && slot_word >> 31) {
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

// out[T, n] = silu(gate) * up, from parts [T, 2n], gates first, each rounded to bf16 first as the product would have
// been. n is a multiple of 8. Grid (ceil(T * n / 8 / 128)), block 128.
extern "C" __global__ void silu_mul_parts(bf16* out, const float* parts, int tokens, int n, int k_blocks, int units,
                                          int ctas) {
  let_next_start();
  const Split split{parts, tokens, 2 * n, k_blocks, units, ctas};
  const int per_row = n / 8, i = blockIdx.x * blockDim.x + threadIdx.x;
  wait_for_previous();
  if (i >= tokens * per_row) return;
  const int t = i / per_row, c = i % per_row * 8;
  float g[8], u[8];
  split.sum8(t, c, g);
  split.sum8(t, n + c, u);
  unpack(pack(g), g);
  unpack(pack(u), u);
#pragma unroll
  for (int k = 0; k < 8; ++k) g[k] = g[k] / (1.0f + __expf(-g[k])) * u[k];
  *reinterpret_cast<bf16x8*>(out + (long)t * n + c) = pack(g);
}
