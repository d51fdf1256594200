// Inner products of rows in float64: eight lanes take a pair, each one of the eight interleaved
// accumulators, and three exchanges add them up in the fixed tree.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace mmga {

constexpr int kAccumulators = 8;
constexpr int kRowsPerWarp = kWarp / kAccumulators;

__device__ inline double widen(float value) { return value; }

// The bits of a float16.
__device__ inline double widen(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const bool special = (magnitude & 0x0f800000) == 0x0f800000;
  // A half's exponent, read as a float's, is too small by 112: multiplying also mends subnormals.
  const float value = __int_as_float(static_cast<int>(magnitude | (special ? 0x70000000u : 0u)));
  const float scaled = special ? value : value * 0x1p112f;
  return __int_as_float(__float_as_int(scaled) | static_cast<int>(sign));
}

// The sum of `width` products x[i] y[i], in all eight lanes; every lane of the warp comes here.
template <typename T>
__device__ double interleaved_sum(const T* x, const T* y, int64_t width) {
  double sum = 0;
  for (int64_t i = lane() % kAccumulators; i < width; i += kAccumulators) {
    sum += widen(x[i]) * widen(y[i]);
  }
  for (int with = 1; with < kAccumulators; with *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, with);
  }
  return sum;
}

// The same of integers, exact: no part of it leaves 32 bits (reference.py, integer_rows).
__device__ inline double interleaved_sum(const int16_t* x, const int16_t* y, int64_t width) {
  int32_t sum = 0;
  for (int64_t i = lane() % kAccumulators; i < width; i += kAccumulators) {
    sum += int32_t{x[i]} * int32_t{y[i]};
  }
  for (int with = 1; with < kAccumulators; with *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, with);
  }
  return sum;
}

}  // namespace mmga
