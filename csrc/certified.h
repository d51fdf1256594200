// What certified ranks are made of, without torch: shared by kernels of both kinds.
#pragma once

#include <cmath>
#include <cstdint>

#include "tile.h"

#ifdef __CUDACC__
#define MMGA_HOST_DEVICE __host__ __device__
#else
#define MMGA_HOST_DEVICE
#endif

namespace mmga {

// Integer rows are features of length 2^15: what one of their numbers stands for.
constexpr double kIntegerUnit = 0x1p-15;

// A pair that is not settled: whether the item at `column` precedes the matches `first` to `last`
// of its row is open.
struct Undecided {
  int32_t row, column, first, last;
};

// The intervals of the keys of a tile, and the thresholds of its rows, widened by the row's slack.
struct Intervals {
  Tile<float> tile;
  const float* row_radius;
  const float* column_radius;
  const float* column_slack;
  const float* lower;
  const float* upper;
};

// How the inner product of two rows, of float32 or of integers, becomes a key in float64.
struct PairKeys {
  const double* row_term;
  const double* column_term;
  int64_t metric;
  bool integers;

  MMGA_HOST_DEVICE double operator()(int64_t row, int64_t column, double product) const {
    const double one = row_term[row], other = column_term[column];
    if (integers) product *= kIntegerUnit * kIntegerUnit;
    if (metric == kEuclidean) {
      if (integers) product *= std::sqrt(one * other);
      const double key = (one + other) - 2 * product;
      return key < 0 ? 0 : key;
    }
    if (integers) return 1 - product;
    const double norms = one * other;
    return norms > 0 ? 1 - product / norms : 1;
  }
};

// What settle_pairs is given; see reference.py.
struct Settlement {
  PairKeys key;
  const double* row_radius;  // null: the products are exact
  const double* column_radius;
  const double* row_slack;
  const double* column_slack;
  int64_t offset;
  const int64_t* match_start;
  const int64_t* match_item;
  const double* match_key;
  int64_t* preceding;
  int64_t* tied;
};

}  // namespace mmga
