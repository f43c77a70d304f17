// Standard normals as a function of (seed, step, sample id, element): two Philox blocks a thread.

#include "noise_cuda.h"
#include "normals.cuh"

namespace ldae {

constexpr int THREADS = 256;

template <class T>
__global__ void normal_kernel(NormalCall a, T* out, int64_t groups) {
  const int64_t thread = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t sample = thread / groups, element = thread % groups * GROUP;
  if (sample >= a.batch) return;
  const NoiseKey key{a.seed, uint32_t(a.step)};
  float made[GROUP];
  normals(key, uint64_t(a.ids[sample]), uint32_t(element / 4), made);
  normals(key, uint64_t(a.ids[sample]), uint32_t(element / 4 + 1), made + 4);
  const int64_t left = a.elements - element;
  store(made, out + sample * a.elements + element, int(left < GROUP ? left : GROUP),
        a.elements % GROUP == 0);
}

}  // namespace ldae

int ldae_normal_cuda(const NormalCall* call, void* stream) {
  using namespace ldae;
  const int64_t groups = (call->elements + GROUP - 1) / GROUP;
  const int64_t blocks = (call->batch * groups + THREADS - 1) / THREADS;
  return by_kind(call->kind, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    return launch(normal_kernel<T>, blocks, THREADS, 0, stream, *call,
                  static_cast<T*>(call->out), groups);
  });
}

const char* ldae_cuda_message(int error) { return cudaGetErrorString(cudaError_t(error)); }
