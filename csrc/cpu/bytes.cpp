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
#include <vector>

#include "checks.h"
#include "common.h"
#include "ranking.h"

namespace mmga {
namespace {

constexpr float kMostOfByte = 127;

// Columns that a vector of the mixing should have, and the most rows.
constexpr int64_t kColumns = 16, kMostMixed = 64;

// How many entries of a row of `width` are mixed with each other: a power of four.
int64_t mixed_entries(int64_t width) {
  int64_t count = 1;
  while (count < kMostMixed && width % (4 * count) == 0 && width / (4 * count) >= kColumns) {
    count *= 4;
  }
  return count;
}

// The signs by which entries are multiplied before they are mixed: the last bits of SplitMix64.
std::vector<float> mixing_signs(int64_t width) {
  std::vector<float> signs(width);
  for (int64_t i = 0; i < width; ++i) {
    uint64_t z = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    signs[i] = ((z ^ (z >> 31)) & 1) != 0 ? -1.0F : 1.0F;
  }
  return signs;
}

// A row as [count, width / count], multiplied by signs and by a Hadamard matrix from the left.
MMGA_VECTOR_CLONES void mix(const float* x, const float* signs, int64_t width, int64_t count,
                            float* to) {
  for (int64_t i = 0; i < width; ++i) to[i] = x[i] * signs[i];
  const int64_t columns = width / count;
  for (int64_t half = 1; half < count; half *= 2) {
    for (int64_t first = 0; first < count; first += 2 * half) {
      float* upper = to + first * columns;
      float* lower = upper + half * columns;
      for (int64_t i = 0; i < half * columns; ++i) {
        const float sum = upper[i] + lower[i], difference = upper[i] - lower[i];
        upper[i] = sum;
        lower[i] = difference;
      }
    }
  }
}

// Rounds to the nearest integer, halves to even, numbers below 2^22.
MMGA_INLINE float nearest(float x) {
  constexpr float kRounder = 0x1.8p23F;
  return (x + kRounder) - kRounder;
}

// Writes an entry as a multiple of `unit` and adds the square of what is left.
MMGA_INLINE void round_to_byte(float x, float scale, float unit, int8_t& to, float& squares) {
  const float number = nearest(x * scale);
  const float rest = x - number * unit;
  to = static_cast<int8_t>(number);
  squares += rest * rest;
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
      round_to_byte(x[i + lane], scale, unit, to[i + lane], squares[lane]);
    }
  }
  for (int64_t i = whole; i < width; ++i) {
    round_to_byte(x[i], scale, unit, to[i], squares[i - whole]);
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
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  const int64_t count = mixed_entries(width);
  const std::vector<float> signs = mixing_signs(width);
  const float shrink = 1 / std::sqrt(static_cast<float>(count));  // a power of two
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> mixed(width);
    for (int64_t row = begin; row < end; ++row) {
      mix(from + row * width, signs.data(), width, count, mixed.data());
      const float largest = largest_of(mixed.data(), width);
      const float scale = largest > 0 ? kMostOfByte / largest : 0;
      const float one = largest / kMostOfByte;
      const double rest = round_to_bytes(mixed.data(), width, scale, one, to + row * width);
      unit[row] = one * shrink;
      left[row] = std::sqrt(rest) * shrink;
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
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
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
