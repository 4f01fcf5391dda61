// KV blocks of one layer into one stretch of memory, and back: for transports that go through host memory, where many
// small copies would each cost a call. The stretch may be pinned host memory, which the GPU reads and writes by itself.
//
//   pool    one layer's KV pool: block b is `unit` pieces of 16 bytes from piece b * unit on
//   blocks  [count] in device memory
//   stretch [count, unit] pieces
// Any grid and block; 16 CTAs of 512 threads fill the bus and leave the rest of the GPU to the model.
#include "common.cuh"

extern "C" __global__ void gather_blocks(uint4* __restrict__ stretch, const uint4* __restrict__ pool,
                                         const u32* __restrict__ blocks, int count, int unit) {
  const long total = (long)count * unit;
#pragma unroll 4
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long)gridDim.x * blockDim.x)
    stretch[i] = pool[(long)blocks[i / unit] * unit + i % unit];
}

extern "C" __global__ void scatter_blocks(uint4* __restrict__ pool, const uint4* __restrict__ stretch,
                                          const u32* __restrict__ blocks, int count, int unit) {
  const long total = (long)count * unit;
#pragma unroll 4
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long)gridDim.x * blockDim.x)
    pool[(long)blocks[i / unit] * unit + i % unit] = stretch[i];
}
