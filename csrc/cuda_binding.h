// What the bindings of CUDA kernels share: the device of a tensor, its current stream, errors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "binding.h"
#include "noise_cuda.h"

namespace ldae {

// Makes the tensor's device the current one, then calls run(the stream that torch works on there).
template <class F>
void on_device_of(const Tensor& t, const F& run) {
  const torch::stable::accelerator::DeviceGuard guard(t.get_device());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  const int error = run(stream);
  STD_TORCH_CHECK(error == 0, "CUDA could not launch the kernel: ", ldae_cuda_message(error));
}

inline int64_t kind_of(ScalarType dtype) {
  if (dtype == ScalarType::Float) return 0;
  if (dtype == ScalarType::BFloat16) return 1;
  STD_TORCH_CHECK(dtype == ScalarType::Half, "dtype must be float32, bfloat16 or float16");
  return 2;
}

}  // namespace ldae
