// Runs CUDA kernels on a CPU: a thread for each thread of a block, one block after the other.
//
// Included before a .cu file that g++ compiles as C++.
#pragma once

#define LDAE_EMULATED
#include <cuda_runtime.h>

#include <barrier>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#undef __shared__
#define __shared__
#define cudaGetErrorString emulated_message

inline const char* emulated_message(cudaError_t) { return "none"; }

inline thread_local uint3 threadIdx;
inline uint3 blockIdx;
inline std::unique_ptr<std::barrier<>> everyone;
inline void __syncthreads() { everyone->arrive_and_wait(); }

namespace ldae {

alignas(16) float4 memory[1 << 14];  // a block's shared memory

template <class... A>
int launch(void (*kernel)(A...), int64_t blocks, int threads, size_t shared, void*, A... arguments) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (shared > sizeof(memory)) return 1;
  for (int64_t block = 0; block < blocks; ++block) {
    for (float4& m : memory) m = {nan, nan, nan, nan};
    blockIdx.x = unsigned(block);
    everyone = std::make_unique<std::barrier<>>(threads);
    std::vector<std::thread> all;
    for (int i = 0; i < threads; ++i)
      all.emplace_back([=] {
        threadIdx.x = unsigned(i);
        kernel(arguments...);
        everyone->arrive_and_drop();
      });
    for (std::thread& one : all) one.join();
    // What lies beyond the shared memory that was asked for must be as it was.
    for (size_t i = (shared + 3) / 4; i < sizeof(memory) / 4; ++i)
      if (!std::isnan(reinterpret_cast<float*>(memory)[i])) return 2;
  }
  return 0;
}

}  // namespace ldae
