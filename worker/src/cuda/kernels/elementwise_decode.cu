// What lies between the products of a decode step on Hopper: norms, RoPE with the KV append, SiLU·mul, each adding up
// the parts that `matmul_decode` left (see `split.cuh`). The arithmetic is that of `elementwise.cu`; here the kernels
// are links of a chain of dependent launches (see `common.cuh`), so that what follows them may start early.
#include "elementwise.cuh"
#include "split.cuh"

// residual += sum of parts (when given); out = residual / rms(residual) * weight.
// residual, out: [T, hidden]. Grid (T), block 32..1024, hidden a multiple of 8 and at most 8 * 4 * blockDim.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_parts(elem* out, elem* residual, const float* parts, const elem* weight, int hidden, float eps,
                   int k_blocks, int units, int ctas) {
  let_next_start();
  const Split split{parts, (int)gridDim.x, hidden, k_blocks, units, ctas};
  const long base = (long)blockIdx.x * hidden;
  const int n = hidden / 8;
  elemx8 keep[4];
  // A step's other weights have pushed these out of the L2 cache; held in registers they would be too many.
  for (int i = threadIdx.x; i < n; i += blockDim.x) asm volatile("prefetch.global.L2 [%0];\n" ::"l"(weight + 8 * i));
  wait_for_previous();
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < n) {
      elemx8 r = load_cg(residual + base + 8 * i);
      float f[8];
      unpack(r, f);
      if (parts != nullptr) {
        float x[8];
        split.sum8(blockIdx.x, 8 * i, x);
#pragma unroll
        for (int k = 0; k < 8; ++k) f[k] += x[k];
        r = pack(f);
        reinterpret_cast<elemx8*>(residual + base)[i] = r;
        unpack(r, f);
      }
      keep[j] = r;
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += f[k] * f[k];
    }
  }
  norm_pieces(out + base, keep, sum, weight, hidden, eps);
}

// The sum of parts [T, (heads + 2 * kv_heads) * HEAD_DIM] and `bias` (or null), rounded to the format of storage, is what
// `rope_append` takes as qkv; other arguments are as there, and so is what is written: queries to `qkv`, keys and values
// to the pool.
// One warp per (token, head). Grid (ceil(T * (heads + 2 * kv_heads) / 4)), block 128.
extern "C" __global__ void rope_append_parts(elem* qkv, elem* pool, const float* parts, const elem* bias,
                                             const u32* positions, const u32* slots, const float* cos_sin,
                                             const elem* q_norm, const elem* k_norm, int tokens, int heads,
                                             int kv_heads, float eps, int k_blocks, int units, int ctas) {
  constexpr int HALF = HeadShare::HALF, PER = HeadShare::PER;
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
  const u32 slot = slots[t];
  float c[PER], s[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const float* cs = cos_sin + (long)positions[t] * HEAD_DIM + lane * PER + i;
    c[i] = cs[0];
    s[i] = cs[HALF];
  }
  wait_for_previous();
  HeadShare x;
  const int column = head * HEAD_DIM + lane * PER;
  if (PER == 2) {
    const float2 a = split.sum2(t, column), b = split.sum2(t, column + HALF);
    x.a[0] = a.x, x.a[PER - 1] = a.y, x.b[0] = b.x, x.b[PER - 1] = b.y;
  } else {
    x.a[0] = split.sum1(t, column);
    x.b[0] = split.sum1(t, column + HALF);
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    if (bias != nullptr) {
      x.a[i] += to_float(bias[column + i]);
      x.b[i] += to_float(bias[column + HALF + i]);
    }
    x.a[i] = to_float(to_elem(x.a[i]));
    x.b[i] = to_float(to_elem(x.b[i]));
  }
  const elem* norm = value ? nullptr : key ? k_norm : q_norm;
  if (norm != nullptr) x.norm(norm, lane, eps);
  if (!value) x.rotate(c, s);
  elem* dst = qkv + ((long)t * all + head) * HEAD_DIM;
  if (key || value) dst = pool_row(pool, slot, value, kv_heads, head - heads - (value ? kv_heads : 0), lane);
  if (dst != nullptr) x.store(dst, lane);
}

// out[T, n] = silu(gate) * up, from parts [T, 2n], gates first, each rounded first as the product would have been. n is a multiple of 8. Grid (ceil(T * n / 8 / 128)), block 128.
extern "C" __global__ void silu_mul_parts(elem* out, const float* parts, int tokens, int n, int k_blocks, int units,
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
  silu_mul8(g, u);
  *reinterpret_cast<elemx8*>(out + (long)t * n + c) = pack(g);
}
