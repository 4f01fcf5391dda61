// The arithmetic of norms, RoPE and SiLU·mul, which `elementwise.cu` does on results of a product and
// `elementwise_decode.cu` on its parts.
#pragma once
#include "common.cuh"

// Second half of RMSNorm over a row of `hidden` numbers: out = row * weight / rms. Each thread of the CTA keeps pieces
// threadIdx.x + j * blockDim.x of the row, and `squares` is the sum of its squares.
__device__ __forceinline__ void norm_pieces(elem* out, const elemx8 (&keep)[4], float squares, const elem* weight,
                                            int hidden, float eps) {
  __shared__ float partial[32];
  const float scale = rsqrtf(block_sum(squares, partial) / hidden + eps);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    if (i < hidden / 8) {
      float f[8], w[8];
      unpack(keep[j], f);
      unpack(reinterpret_cast<const elemx8*>(weight)[i], w);
#pragma unroll
      for (int k = 0; k < 8; ++k) f[k] = f[k] * scale * w[k];
      reinterpret_cast<elemx8*>(out)[i] = pack(f);
    }
  }
}

// One lane's share of a head that a warp works on: PER elements of each half from lane * PER on, since RoPE pairs i with
// i + HEAD_DIM / 2.
struct HeadShare {
  static constexpr int HALF = HEAD_DIM / 2, PER = HALF / 32;
  static_assert(HALF % 32 == 0, "a head is at least 64 wide");
  float a[PER], b[PER];

  // RMSNorm of the head (Qwen3); `weight` [HEAD_DIM].
  __device__ __forceinline__ void norm(const elem* weight, int lane, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; ++i) sum += a[i] * a[i] + b[i] * b[i];
    const float scale = rsqrtf(warp_sum(sum) / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      a[i] = a[i] * scale * to_float(weight[lane * PER + i]);
      b[i] = b[i] * scale * to_float(weight[HALF + lane * PER + i]);
    }
  }

  // Turns the pairs by their angles.
  __device__ __forceinline__ void rotate(const float (&cosines)[PER], const float (&sines)[PER]) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const float x = a[i] * cosines[i] - b[i] * sines[i], y = b[i] * cosines[i] + a[i] * sines[i];
      a[i] = x;
      b[i] = y;
    }
  }

  __device__ __forceinline__ void store(elem* head, int lane) const {
    if (PER == 2) {  // two neighbours at once
      *reinterpret_cast<u32*>(head + lane * PER) = pack2(a[0], a[PER - 1]);
      *reinterpret_cast<u32*>(head + HALF + lane * PER) = pack2(b[0], b[PER - 1]);
    } else {
      head[lane] = to_elem(a[0]);
      head[HALF + lane] = to_elem(b[0]);
    }
  }
};

// Where a token's key or value goes in the pool, or null for padding. `slot` is an entry of `rope_append`'s slots; if it
// says that the token is the last of its sequence in a newly begun block, the block's value rows behind it become zero.
__device__ __forceinline__ elem* pool_row(elem* pool, u32 slot, bool value, int kv_heads, int kv, int lane) {
  if (slot == ~0u) return nullptr;
  const int offset = (slot & 0x7fffffffu) % BLOCK_SIZE;
  elem* row = pool + kv_offset((slot & 0x7fffffffu) / BLOCK_SIZE, value, kv_heads, kv) + (long)offset * HEAD_DIM;
  if (value && slot >> 31) {
    const int rest = (BLOCK_SIZE - 1 - offset) * HEAD_DIM / 8;
    uint4* tail = reinterpret_cast<uint4*>(row + HEAD_DIM);
    for (int i = lane; i < rest; i += 32) tail[i] = make_uint4(0, 0, 0, 0);
  }
  return row;
}

// gate = silu(gate) * up.
__device__ __forceinline__ void silu_mul8(float (&gate)[8], const float (&up)[8]) {
#pragma unroll
  for (int k = 0; k < 8; ++k) gate[k] = gate[k] / (1.0f + __expf(-gate[k])) * up[k];
}
