// Sums over pairs of rows in float64: eight lanes take a pair, each one of the eight interleaved
// accumulators, and three exchanges add them up in the fixed tree.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/scalar.h"
#include "cuda/launch.cuh"

namespace mmga {

constexpr int kAccumulators = 8;
constexpr int kRowsPerWarp = kWarp / kAccumulators;

__device__ inline double widen(float value) { return value; }
__device__ inline double widen(uint16_t half) { return half_to_float(half); }

// What is summed over the elements of two rows. Multiplications and additions are compiled apart
// (--fmad=false).
struct Product {
  static __device__ double of(double x, double y) { return x * y; }
};
struct SquaredDifference {
  static __device__ double of(double x, double y) { return (x - y) * (x - y); }
};

// The sum of `width` terms, in all eight lanes; every lane of the warp comes here.
template <typename Term, typename T>
__device__ double interleaved_sum(const T* x, const T* y, int64_t width) {
  double sum = 0;
  for (int64_t i = lane() % kAccumulators; i < width; i += kAccumulators) {
    sum += Term::of(widen(x[i]), widen(y[i]));
  }
  for (int with = 1; with < kAccumulators; with *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, with);
  }
  return sum;
}

// The sum of products of integers: exact, as no partial sum exceeds 32 bits.
__device__ inline double integer_sum(const int16_t* x, const int16_t* y, int64_t width) {
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
