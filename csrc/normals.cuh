// What the noise kernels of a GPU share: four normals of a block, outputs of any float type, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "philox.h"

namespace ldae {

__device__ __forceinline__ void normals(NoiseKey key, uint64_t id, uint32_t block, float* out) {
  uint32_t c0 = block, c1 = uint32_t(id), c2 = uint32_t(id >> 32), c3 = key.step;
  uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c0) * 0xD2511F53u, b = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  on_circle(radius_of(c0), c1, out[0], out[1]);
  on_circle(radius_of(c2), c3, out[2], out[3]);
}

__device__ __forceinline__ void convert(float x, float& out) { out = x; }
__device__ __forceinline__ void convert(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void convert(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

constexpr int GROUP = 8;  // elements of two blocks: 16 bytes or 32

// The first `count` of a group's values; all of them in 16-byte stores where `whole` says that the
// address allows it.
template <class T>
__device__ __forceinline__ void store(const float* values, T* out, int count, bool whole) {
  if (whole && count == GROUP) {
    alignas(16) T made[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) convert(values[i], made[i]);
#pragma unroll
    for (int i = 0; i < int(GROUP * sizeof(T) / sizeof(uint4)); ++i)
      reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(made)[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < GROUP; ++i)
    if (i < count) convert(values[i], out[i]);
}

#ifndef LDAE_EMULATED  // tests/emulated.h runs the kernels on a CPU
template <class... A>
int launch(void (*kernel)(A...), int64_t blocks, int threads, size_t shared, void* stream,
           A... arguments) {
  if (blocks == 0) return 0;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (shared > 48 * 1024)
    if (auto error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared))) {
      cudaGetLastError();  // or the next good launch, torch's too, would be told of it
      return error;
    }
  kernel<<<unsigned(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}
#endif

// Runs one(T*) for the type that kind, 0 float32, 1 bfloat16, 2 float16, names.
template <class F>
int by_kind(int64_t kind, const F& one) {
  if (kind == 0) return one(static_cast<float*>(nullptr));
  if (kind == 1) return one(static_cast<__nv_bfloat16*>(nullptr));
  return one(static_cast<__half*>(nullptr));
}

}  // namespace ldae
