// Inner products of pairs of rows, the same on every machine.
//
// Rows of float32 in float64: eight interleaved accumulators and a fixed tree (`interleaved_sum` of
// mmga/ops/reference). Their products are exact in float64, so that a machine with fused
// multiply-add gives the same bits as one without. Rows of 16-bit integers: exact.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/dispatch.h"

namespace mmga {
namespace {

constexpr int64_t kAccumulators = 8;
// Rows that are multiplied with one at once: their sums are independent, which hides the latency of
// additions.
constexpr int64_t kProducts = 4;

typedef double Doubles __attribute__((vector_size(32)));

// Adds the products of eight values. Compilers turn the lists of four into one conversion.
MMGA_INLINE void add_products(Doubles& low, Doubles& high, const double* x, const float* y) {
  Doubles x_low, x_high;
  std::memcpy(&x_low, x, sizeof x_low);
  std::memcpy(&x_high, x + 4, sizeof x_high);
  const Doubles y_low = {y[0], y[1], y[2], y[3]};
  const Doubles y_high = {y[4], y[5], y[6], y[7]};
  low += x_low * y_low;
  high += x_high * y_high;
}

template <int kRows>
MMGA_VECTOR_CLONES void multiply(const double* x, const float* const* y, int64_t width,
                                 double* products) {
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

// The lengths of integer rows are below 2^15.5: no partial sum exceeds 32 bits, by Cauchy's
// inequality.
template <int kRows>
MMGA_VECTOR_CLONES void multiply(const int16_t* x, const int16_t* const* y, int64_t width,
                                 double* products) {
  const int16_t* rows[kRows];
  int32_t sums[kRows] = {};
  for (int r = 0; r < kRows; ++r) rows[r] = y[r];
  for (int64_t i = 0; i < width; ++i) {
    for (int r = 0; r < kRows; ++r) sums[r] += int32_t{x[i]} * int32_t{rows[r][i]};
  }
  for (int r = 0; r < kRows; ++r) products[r] = sums[r];
}

// A row that is multiplied with many others, in the type of the arithmetic.
template <typename T>
class Multiplicand {
 public:
  explicit Multiplicand(int64_t) {}
  void set(const T* row) { row_ = row; }
  const T* get() const { return row_; }

 private:
  const T* row_ = nullptr;
};

template <>
class Multiplicand<float> {
 public:
  explicit Multiplicand(int64_t width)
      : width_(width), values_((width + kAccumulators - 1) / kAccumulators * kAccumulators) {}

  void set(const float* row) {
    if (row == row_) return;
    row_ = row;
    for (int64_t i = 0; i < width_; ++i) values_[i] = row[i];
  }
  const double* get() const { return values_.data(); }

 private:
  int64_t width_;
  const float* row_ = nullptr;
  std::vector<double> values_;
};

// Calls use(p, product) for the pairs `begin` to `end`, where pair p is of the rows row(p) of x and
// column(p) of y. Neighbouring pairs of one row are multiplied together.
template <typename T, typename Row, typename Column, typename Use>
void multiply_pairs(const T* x, const T* y, int64_t width, int64_t begin, int64_t end,
                    const Row& row, const Column& column, const Use& use) {
  Multiplicand<T> one(width);
  for (int64_t p = begin; p < end;) {
    const T* others[kProducts];
    double products[kProducts];
    int64_t several = 0;
    for (; several < kProducts && p + several < end && row(p + several) == row(p); ++several) {
      others[several] = y + column(p + several) * width;
    }
    one.set(x + row(p) * width);
    if (several == kProducts) {
      multiply<kProducts>(one.get(), others, width, products);
    } else {
      for (int64_t s = 0; s < several; ++s) {
        multiply<1>(one.get(), others + s, width, products + s);
      }
    }
    for (int64_t s = 0; s < several; ++s) use(p + s, products[s]);
    p += several;
  }
}

}  // namespace
}  // namespace mmga
