// How `matmul_decode` cuts a product among CTAs, and how the kernel behind it adds up the parts.
//
// Units are 128 weight rows x 64 inputs, numbered tile by tile, inputs first: unit = tile * k_blocks + k_block. CTA c of
// `ctas` takes units [units * c / ctas, units * (c + 1) / ctas), so a tile may be shared by neighbouring CTAs. Each of
// them writes its part to a plane of its own; whoever reads the result adds the planes in order, so that the sum does
// not depend on timing.
#pragma once
#include "common.cuh"

constexpr int SPLIT_ROWS = 128, SPLIT_INPUTS = 64;

// parts [planes, tokens, n] float.
struct Split {
  const float* parts;
  int tokens, n, k_blocks, units, ctas;

  __device__ __forceinline__ int owner(int unit) const { return (int)(((long)(unit + 1) * ctas - 1) / units); }
  __device__ __forceinline__ int planes(int column) const {
    const int first = column / SPLIT_ROWS * k_blocks;
    return owner(first + k_blocks - 1) - owner(first) + 1;
  }
  // Eight neighbouring columns of one token; `column` is a multiple of 8.
  __device__ __forceinline__ void sum8(int token, int column, float (&f)[8]) const {
    const float* at = parts + (long)token * n + column;
    const long plane = (long)tokens * n;
    const int count = planes(column);
#pragma unroll
    for (int k = 0; k < 8; ++k) f[k] = 0.0f;
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      const float4 a = load_float4_cg(at + s * plane), b = load_float4_cg(at + s * plane + 4);
      f[0] += a.x, f[1] += a.y, f[2] += a.z, f[3] += a.w;
      f[4] += b.x, f[5] += b.y, f[6] += b.z, f[7] += b.w;
    }
  }
  // Two neighbouring columns; `column` is even.
  __device__ __forceinline__ float2 sum2(int token, int column) const {
    const float* at = parts + (long)token * n + column;
    const long plane = (long)tokens * n;
    const int count = planes(column);
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      const float2 a = load_float2_cg(at + s * plane);
      sum.x += a.x, sum.y += a.y;
    }
    return sum;
  }
  __device__ __forceinline__ float sum1(int token, int column) const {
    const float* at = parts + (long)token * n + column;
    const long plane = (long)tokens * n;
    const int count = planes(column);
    float sum = 0.0f;
    for (int s = 0; s < count; ++s) sum += __uint_as_float(load_u32_cg(at + s * plane));
    return sum;
  }
};
