// Dummy weights, made on the device: uniform in [-scale, scale], a pure function of (seed, index).
#include "common.cuh"

// out[n]. Grid-stride, block 256. The mixing function is splitmix64's finaliser (Steele et al. 2014).
extern "C" __global__ void fill_uniform(elem* __restrict__ out, u64 n, u64 seed, float scale) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
    u64 z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    out[i] = to_elem(((float)(z >> 40) * (2.0f / 16777216.0f) - 1.0f) * scale);
  }
}

// out[n] = value.
extern "C" __global__ void fill_constant(elem* __restrict__ out, u64 n, float value) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
    out[i] = to_elem(value);
}
