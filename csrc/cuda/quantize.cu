// Features as integers of 8 or 16 bits, a warp to a row. Bound by one read of the rows: 8 bits read
// them twice, the second time from the caches.
#include "common/certified.h"
#include "common/quantize.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"

namespace mmga {
namespace {

// Calls take(place, value) for the mixed entries of a row of this lane. A column of the row, viewed
// as [kCount, columns], is mixed in registers.
template <int kCount, typename Take>
__device__ void each_mixed(const float* x, int64_t width, const Take& take) {
  const int64_t columns = width / kCount;
  for (int64_t column = lane(); column < columns; column += kWarp) {
    float entries[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t place = i * columns + column;
      entries[i] = x[place] * mixing_sign(place);
    }
#pragma unroll
    for (int half = 1; half < kCount; half *= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if ((i & half) != 0) continue;
        const float upper = entries[i], lower = entries[i | half];
        entries[i] = upper + lower;
        entries[i | half] = upper - lower;
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) take(i * columns + column, entries[i]);
  }
}

template <int kCount>
__global__ void __launch_bounds__(kWarpThreads)
    int8_rows_kernel(const FeatureRows x, float most, float shrink, int8_t* numbers, float* units,
                     double* errors) {
  for (int64_t row = warp_number(); row < x.rows; row += warp_count()) {
    const float* line = x.values + row * x.width;
    float largest = 0;
    each_mixed<kCount>(line, x.width, [&](int64_t, float value) {
      const float size = fabsf(value);
      largest = size > largest ? size : largest;
    });
    largest = warp_max(largest);
    const float scale = largest < kLeastEntry ? 0 : most / largest;
    const float unit = largest / most;
    double squares = 0;
    each_mixed<kCount>(line, x.width, [&](int64_t place, float value) {
      const float number = rintf(value * scale);
      const double rest = value - number * unit;
      squares += rest * rest;
      numbers[row * x.width + place] = static_cast<int8_t>(number);
    });
    squares = warp_sum(squares);
    if (lane() == 0) {
      units[row] = unit * shrink;
      errors[row] = sqrt(squares) * static_cast<double>(shrink);
    }
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    int16_rows_kernel(const FeatureRows x, const double* norms, int16_t* numbers, double* errors) {
  for (int64_t row = warp_number(); row < x.rows; row += warp_count()) {
    const double norm = norms[row];
    const bool is_short = norm < kLeastSquared;
    const float scale = is_short ? 0 : static_cast<float>(1 / (kIntegerUnit * sqrt(norm)));
    double squares = 0;
    for (int64_t i = row * x.width + lane(); i < (row + 1) * x.width; i += kWarp) {
      const float value = x.values[i] * scale;
      float whole = rintf(value);
      whole = whole > kMostOfShort ? kMostOfShort : whole < -kMostOfShort ? -kMostOfShort : whole;
      const double rest = value - whole;
      squares += rest * rest;
      numbers[i] = static_cast<int16_t>(whole);
    }
    squares = warp_sum(squares);
    if (lane() == 0) errors[row] = is_short && norm > 0 ? 1 / kIntegerUnit : sqrt(squares);
  }
}

}  // namespace

cudaError_t launch_int8_rows(const FeatureRows& x, float most, int8_t* numbers, float* units,
                             double* errors, cudaStream_t stream) {
  const int64_t count = mixed_entries(x.width);
  const auto kernel = count == 1    ? int8_rows_kernel<1>
                      : count == 4  ? int8_rows_kernel<4>
                      : count == 16 ? int8_rows_kernel<16>
                                    : int8_rows_kernel<64>;
  const float shrink = 1 / sqrtf(static_cast<float>(count));  // a power of two
  return launch(kernel, blocks_for(x.rows, kWarpsPerBlock), kWarpThreads, stream, x, most, shrink,
                numbers, units, errors);
}

cudaError_t launch_int16_rows(const FeatureRows& x, const double* norms, int16_t* numbers,
                              double* errors, cudaStream_t stream) {
  return launch(int16_rows_kernel, blocks_for(x.rows, kWarpsPerBlock), kWarpThreads, stream, x,
                norms, numbers, errors);
}

}  // namespace mmga
