// How weights come to be: dummy ones are made here, uniform in [-scale, scale], a pure function of (seed, index); those of
// files are rounded here, if they are stored in another format than the model is computed in.
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

// out[n] = in[n], rounded to nearest even.
extern "C" __global__ void convert_f32(elem* __restrict__ out, const float* __restrict__ in, u64 n) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
    out[i] = to_elem(in[i]);
}

// The same from the other format of 16 bits.
extern "C" __global__ void convert_16(elem* __restrict__ out, const unsigned short* __restrict__ in, u64 n) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
#ifdef F16
    const float value = __uint_as_float((u32)in[i] << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(in[i]));
#endif
    out[i] = to_elem(value);
  }
}
