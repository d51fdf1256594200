// The host side of every CUDA operator: the current device and stream, and registration. Kernels
// and their launchers (.cu) include no torch header; the .cpp beside each allocates and launches
// for the arguments that args/ has checked.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>

#include "common/checks.h"

// Tests compile the same sources for the CPU, as operators of a library of their own.
#ifdef MMGA_CUDA_EMULATION
#define MMGA_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mmga_emulated, CPU, m)
#else
#define MMGA_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mmga, CUDA, m)
#endif

namespace mmga {

// Makes a tensor's device the current one, and its stream the one to launch on. torch::stable's own
// stream has no native handle before 2.13, the floor is 2.11.
class Device {
 public:
  explicit Device(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    const int32_t index = tensor.get_device_index();
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == AOTI_TORCH_SUCCESS,
                    "no current CUDA stream on device ", index);
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

  // Waits for the device and returns one of its integers.
  int64_t read(const int64_t* value) const {
    int64_t result = 0;
    STD_CUDA_CHECK(cudaMemcpyAsync(&result, value, sizeof result, cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return result;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace mmga
