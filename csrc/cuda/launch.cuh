// Launching kernels, shared memory, and what the lanes of a warp do together.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

// Tests on machines without a GPU bring a macro of their own, which checks every access.
#ifndef MMGA_SHARED
#define MMGA_SHARED(T, name, count) __shared__ T name[count]
#endif

namespace mmga {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Kernels that give every item a warp walk on by the number of warps, so that any grid will do.
constexpr int kWarpsPerBlock = 4;
constexpr int kWarpThreads = kWarpsPerBlock * kWarp;
constexpr int64_t kMostBlocks = int64_t{1} << 30;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks < 0 || blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min((items + per_block - 1) / per_block, kMostBlocks);
}

__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int64_t warp_number() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
}
__device__ inline int64_t warp_count() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;
}
__device__ inline int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <typename T>
__device__ T warp_sum(T value) {
  for (int with = kWarp / 2; with > 0; with /= 2) value += __shfl_xor_sync(kAllLanes, value, with);
  return value;
}

template <typename T>
__device__ T warp_max(T value) {
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, with);
    value = other > value ? other : value;
  }
  return value;
}

template <typename T>
__device__ T warp_min(T value) {
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, with);
    value = other < value ? other : value;
  }
  return value;
}

// The sum of the values of the lanes up to this one.
template <typename T>
__device__ T warp_running_sum(T value) {
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, delta);
    if (lane() >= delta) value += below;
  }
  return value;
}

}  // namespace mmga
