// Kernels with one fault each, which the emulation must name; the first has none.
#include <exception>
#include <string>

#include "cuda/launch.cuh"

namespace {

constexpr int kThreads = 64;

__global__ void reversed(int* out) {
  MMGA_SHARED(int, values, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  __syncthreads();
  out[blockIdx.x * kThreads + t] = values[kThreads - 1 - t];
}

__global__ void without_barrier(int* out) {
  MMGA_SHARED(int, values, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  out[blockIdx.x * kThreads + t] = values[kThreads - 1 - t];
}

// A barrier of the warp does not order two warps.
__global__ void with_warp_barrier(int* out) {
  MMGA_SHARED(int, values, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  __syncwarp();
  out[blockIdx.x * kThreads + t] = values[kThreads - 1 - t];
}

__global__ void past_the_end(int* out) {
  MMGA_SHARED(int, values, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  values[t + 1] = t;
  __syncthreads();
  out[t] = values[t];
}

__global__ void two_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}

__global__ void missing_lane(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(mmga::kAllLanes, 1, 0);
}

// Whoever comes last wins: only the order of threads shows it.
__global__ void last_wins(int* out) { out[blockIdx.x] = static_cast<int>(threadIdx.x); }

using Kernel = void (*)(int*);
const Kernel kKernels[] = {reversed,     without_barrier, with_warp_barrier, past_the_end,
                           two_barriers, missing_lane,    last_wins};

}  // namespace

// Runs a kernel on 2 blocks; returns what the emulation has to say, "" where it is content.
extern "C" __attribute__((visibility("default"))) const char* run_kernel(int which, int* out) {
  static std::string message;
  message.clear();
  try {
    mmga::launch(kKernels[which], 2, kThreads, nullptr, out);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
