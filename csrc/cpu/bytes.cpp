// Features as integers of 8 bits on the CPU, and what their inner products stand for. The products
// themselves are torch's. mmga/ops/reference.py specifies every function.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "checks.h"
#include "common.h"
#include "keys.h"

namespace mmga {
namespace {

constexpr float kMostOfByte = 127;
// Entries that one thread should have before another is worth waking.
constexpr int64_t kBytesGrain = 1 << 15;

// Rounds to the nearest integer, halves to even, numbers below 2^22.
MMGA_INLINE float nearest(float x) {
  constexpr float kRounder = 0x1.8p23F;
  return (x + kRounder) - kRounder;
}

MMGA_VECTOR_CLONES float largest_of(const float* x, int64_t width) {
  float largest = 0;
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}

// Writes a row as multiples of `unit`; returns the squared length of what is left.
MMGA_VECTOR_CLONES double round_to_bytes(const float* x, int64_t width, float scale, float unit,
                                         int8_t* to) {
  constexpr int64_t kSums = 16;
  float squares[kSums] = {};
  const int64_t whole = width / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
    for (int64_t lane = 0; lane < kSums; ++lane) {
      const float number = nearest(x[i + lane] * scale);
      const float rest = x[i + lane] - number * unit;
      to[i + lane] = static_cast<int8_t>(number);
      squares[lane] += rest * rest;
    }
  }
  for (int64_t i = whole; i < width; ++i) {
    const float number = nearest(x[i] * scale);
    const float rest = x[i] - number * unit;
    to[i] = static_cast<int8_t>(number);
    squares[i - whole] += rest * rest;
  }
  double total = 0;
  for (const float square : squares) total += square;
  return total;
}

std::tuple<Tensor, Tensor, Tensor> byte_rows(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "x must be [N, D]");
  check(x, ScalarType::Float, -1, "x");
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor numbers = torch::stable::new_empty(x, {rows, width}, ScalarType::Char);
  Tensor units = torch::stable::new_empty(x, {rows});
  Tensor error = torch::stable::new_empty(x, {rows}, ScalarType::Double);
  const float* from = detail::pointer<float>(x);
  auto* to = static_cast<int8_t*>(numbers.mutable_data_ptr());
  auto* unit = static_cast<float*>(units.mutable_data_ptr());
  auto* left = static_cast<double*>(error.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kBytesGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float largest = largest_of(from + row * width, width);
      const float scale = largest > 0 ? kMostOfByte / largest : 0;
      unit[row] = largest / kMostOfByte;
      left[row] = std::sqrt(
          round_to_bytes(from + row * width, width, scale, unit[row], to + row * width));
    }
  });
  return {numbers, units, error};
}

// Integers and floats of one place: each is read before it is written.
MMGA_VECTOR_CLONES void floats_of_row(char* values, int64_t width, float row_unit,
                                      const float* column_unit) {
  for (int64_t j = 0; j < width; ++j) {
    int32_t product;
    std::memcpy(&product, values + 4 * j, sizeof product);
    const float value = (static_cast<float>(product) * row_unit) * column_unit[j];
    std::memcpy(values + 4 * j, &value, sizeof value);
  }
}

void floats_of_integers_(Tensor values, const Tensor& row_unit, const Tensor& column_unit) {
  const int64_t rows = values.size(0), width = values.size(1), stride = values.stride(0);
  check_rows(values, ScalarType::Int, rows, width, "values");
  check(row_unit, ScalarType::Float, rows, "row_unit");
  check(column_unit, ScalarType::Float, width, "column_unit");
  auto* bytes = static_cast<char*>(values.mutable_data_ptr());
  const float* own = detail::pointer<float>(row_unit);
  const float* others = detail::pointer<float>(column_unit);
  const int64_t grain = std::max<int64_t>(1, kBytesGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      floats_of_row(bytes + 4 * row * stride, width, own[row], others);
    }
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("byte_rows", TORCH_BOX(&mmga::byte_rows));
  m.impl("floats_of_integers_", TORCH_BOX(&mmga::floats_of_integers_));
}
