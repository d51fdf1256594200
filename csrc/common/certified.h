// The raw arrays of the operators of certified ranks, without torch: shared by the CPU and CUDA
// kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/tile.h"

namespace mmga {

// Integer rows are features of length 2^15: the value of the integer 1.
constexpr double kIntegerUnit = 0x1p-15;

// An undecided pair: the item at `column` may or may not precede the matches `first` to `last` of
// its row.
struct Undecided {
  int32_t row, column, first, last;
};

// Bounds on the error of a tile's keys, and the thresholds of its rows, widened by the row's slack.
struct Intervals {
  const float* row_radius;
  const float* column_radius;
  const float* column_slack;
  const int64_t* match_start;
  const float* lower;
  const float* upper;
  int64_t* preceding;
};

// How the sum over two rows becomes a key in float64: the squared distance of rows of float32 with
// the Euclidean metric, else their inner product.
struct PairKeys {
  const double* row_term;
  const double* column_term;
  int64_t metric;
  bool integers;

  MMGA_HOST_DEVICE double operator()(int64_t row, int64_t column, double sum) const {
    if (!integers && metric == kEuclidean) return sum;
    const double one = row_term[row], other = column_term[column];
    if (!integers) {
      const double norms = one * other;
      return norms > 0 ? 1 - sum / norms : 1;
    }
    const double cosine = sum * (kIntegerUnit * kIntegerUnit);
    if (metric == kCosine) return 1 - cosine;
    const double key = (one + other) - 2 * (cosine * std::sqrt(one * other));
    return key < 0 ? 0 : key;
  }
};

// The arrays of refine_pairs: bounds of keys, and the matches that pairs may precede.
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

// Lists of candidates: items, and the bits of two floats, bounds of their keys.
struct BoundedLists {
  int32_t* candidates;  // [lists, slots, 3]; null: there are none
  int32_t* counts;      // -1: candidates were lost
  float* limits;
  int64_t slots;
  int64_t kept;  // nearest that are wanted
};

// Rows and columns as 16-bit integers, with the bounds of their keys, and a bit for each pair whose
// column may be a candidate of the row.
struct FinePairs {
  const int32_t* bits;  // [rows, words]
  const int16_t* x;
  const int16_t* y;
  int64_t rows, words, width;
  PairKeys key;
  const double* row_radius;
  const double* column_radius;
  const double* row_slack;
  const double* column_slack;
  int64_t first_row, first_item;  // the list of the first row, the item of the first column
};

}  // namespace mmga
