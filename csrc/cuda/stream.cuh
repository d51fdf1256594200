// The one place that asks torch for its current CUDA stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace mmga {

// torch::stable's own stream has no native handle before 2.13, the floor is 2.11.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "no current CUDA stream on device ", device);
  return static_cast<cudaStream_t>(stream);
}

}  // namespace mmga
