// The noise kernels of a GPU as plain calls, for bindings and for tests that run them on a CPU.
//
// Every field is 8 bytes wide. kind: 0 float32, 1 bfloat16, 2 float16. Each call returns 0 or the
// number of CUDA's error, which ldae_cuda_message puts into words.
#pragma once

#include <cstdint>

extern "C" {

struct NormalCall {
  uint64_t seed;
  int64_t step;
  const int64_t* ids;  // (batch,)
  int64_t batch, elements, kind;
  void* out;  // (batch, elements)
};

// images: bytes (batch, rows, columns, channels), or else floats (batch, channels, rows, columns).
// weight (P, d), bias (d,): latents = (values - offset) weight + bias with offset 128 for bytes, 0
// for floats. back (d, P), center (P,): patches = latents back + center. Outputs: null where not
// wanted. flip (batch,), crop (batch, 2): null without.
struct PatchPCANoiseCall {
  const uint8_t* bytes;
  const float* floats;
  const uint8_t* flip;
  const int64_t* crop;
  const float *weight, *bias, *back, *center, *gamma, *sigma;
  const int64_t* ids;
  void *clean, *noisy, *patches, *noise;
  uint64_t seed;
  int64_t step, batch, rows, columns, height, width, channels, patch, d, kind;
};

int ldae_normal_cuda(const NormalCall* call, void* stream);
int ldae_patch_pca_noise_cuda(const PatchPCANoiseCall* call, void* stream);
const char* ldae_cuda_message(int error);
}
