// Inner products in float64: eight interleaved accumulators and a fixed tree (reference.py,
// interleaved_sum). Products of float32 are exact in float64, so that a machine with fused
// multiply-add gives the same bits as one without.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common.h"

namespace mmga {
namespace {

constexpr int64_t kAccumulators = 8;
// Rows that are multiplied with one at once: their sums are independent of each other, which hides
// the time that an addition takes.
constexpr int64_t kProducts = 4;

typedef double Doubles __attribute__((vector_size(32)));

// Adds the products of eight values. Compilers see in the lists of four what one instruction does.
__attribute__((always_inline)) inline void add_products(Doubles& low, Doubles& high,
                                                        const double* x, const float* y) {
  Doubles x_low, x_high;
  std::memcpy(&x_low, x, sizeof x_low);
  std::memcpy(&x_high, x + 4, sizeof x_high);
  const Doubles y_low = {y[0], y[1], y[2], y[3]};
  const Doubles y_high = {y[4], y[5], y[6], y[7]};
  low += x_low * y_low;
  high += x_high * y_high;
}

template <int kRows>
__attribute__((always_inline)) inline void multiply_body(const double* x, const float* const* y,
                                                         int64_t width, double* products) {
  Doubles low[kRows] = {};
  Doubles high[kRows] = {};
  const int64_t whole = width / kAccumulators * kAccumulators;
  for (int64_t i = 0; i < whole; i += kAccumulators) {
    for (int r = 0; r < kRows; ++r) add_products(low[r], high[r], x + i, y[r] + i);
  }
  for (int r = 0; r < kRows; ++r) {
    if (whole < width) {
      float rest[kAccumulators] = {};
      std::memcpy(rest, y[r] + whole, (width - whole) * sizeof(float));
      add_products(low[r], high[r], x + whole, rest);
    }
    products[r] = ((low[r][0] + low[r][1]) + (low[r][2] + low[r][3])) +
                  ((high[r][0] + high[r][1]) + (high[r][2] + high[r][3]));
  }
}

MMGA_VECTOR_CLONES void multiply_one(const double* x, const float* const* y, int64_t width,
                                     double* products) {
  multiply_body<1>(x, y, width, products);
}
MMGA_VECTOR_CLONES void multiply_several(const double* x, const float* const* y, int64_t width,
                                         double* products) {
  multiply_body<kProducts>(x, y, width, products);
}

// A row that is multiplied with many others.
class WideRow {
 public:
  explicit WideRow(int64_t width)
      : width_(width), values_((width + kAccumulators - 1) / kAccumulators * kAccumulators) {}

  void set(const float* row) {
    if (row == row_) return;
    row_ = row;
    for (int64_t i = 0; i < width_; ++i) values_[i] = row[i];
  }

  // The inner products with `count` <= kProducts rows.
  void multiply(const float* const* rows, int64_t count, double* products) const {
    if (count == kProducts) return multiply_several(values_.data(), rows, width_, products);
    for (int64_t r = 0; r < count; ++r) {
      multiply_one(values_.data(), rows + r, width_, products + r);
    }
  }

 private:
  int64_t width_;
  const float* row_ = nullptr;
  std::vector<double> values_;
};

}  // namespace
}  // namespace mmga
