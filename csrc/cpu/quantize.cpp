// Features as integers of 8 or 16 bits on the CPU. mmga/ops/reference specifies every function.

#include "common/quantize.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/certified.h"
#include "common/checks.h"
#include "common/dispatch.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

typedef float Floats __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kLanes = kVectorBytes / sizeof(float);

std::vector<float> mixing_signs(int64_t width) {
  std::vector<float> signs(width);
  for (int64_t i = 0; i < width; ++i) signs[i] = mixing_sign(i);
  return signs;
}

// Multiplies a row, as [count, width / count], by signs and by a Hadamard matrix from the left.
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

// A number below 2^22 plus this and minus this is rounded to the nearest integer, halves to even.
constexpr float kRounder = 0x1.8p23F;

// Writes an entry as a multiple of `unit` and adds the square of the rounding error.
MMGA_INLINE void round_to_byte(float x, float scale, float unit, int8_t& to, float& squares) {
  const float number = (x * scale + kRounder) - kRounder;
  const float rest = x - number * unit;
  to = static_cast<int8_t>(number);
  squares += rest * rest;
}

MMGA_VECTOR_CLONES float largest_of(const float* x, int64_t width) {
  float largest = 0;
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}

// Writes a row as multiples of `unit`; returns the squared length of the rounding error.
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

// Writes a vector times `scale` as integers and adds the squares of the rounding errors.
MMGA_INLINE void round_to_shorts(const float* x, float scale, int16_t* to, Floats& squares) {
  typedef int32_t Wide __attribute__((vector_size(kVectorBytes)));
  typedef int16_t Shorts __attribute__((vector_size(kLanes * sizeof(int16_t))));
  const Floats most = Floats{} + kMostOfShort;
  Floats value;
  std::memcpy(&value, x, sizeof value);
  value *= scale;
  Floats whole = (value + kRounder) - kRounder;
  whole = whole > most ? most : whole;
  whole = whole < -most ? -most : whole;
  const Floats rest = value - whole;
  squares += rest * rest;
  const Shorts numbers = __builtin_convertvector(__builtin_convertvector(whole, Wide), Shorts);
  std::memcpy(to, &numbers, sizeof numbers);
}

// Writes a row times `scale` as integers; returns the squared length of the rounding error.
MMGA_VECTOR_CLONES double round_to_shorts(const float* x, int64_t width, float scale, int16_t* to) {
  Floats squares = {};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) round_to_shorts(x + i, scale, to + i, squares);
  if (whole < width) {
    float rest[kLanes] = {};
    int16_t numbers[kLanes];
    std::copy(x + whole, x + width, rest);
    round_to_shorts(rest, scale, numbers, squares);
    std::copy(numbers, numbers + (width - whole), to + whole);
  }
  double total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += squares[lane];
  return total;
}

std::tuple<Tensor, Tensor> int16_rows(const Tensor& x, const Tensor& norms) {
  const Arguments args("int16_rows", x);
  const auto* from = args.input<float>(x, "x", {kAny, kAny});
  const int64_t rows = x.size(0), width = x.size(1);
  args.range("columns of x", width, 0, kWidestShorts);
  const auto* squared = args.input<double>(norms, "norms", {rows});
  const Tensor numbers = new_tensor<int16_t>(x, {rows, width});
  const Tensor error = new_tensor<double>(x, {rows});
  auto* to = data_of<int16_t>(numbers);
  auto* left = data_of<double>(error);
  share_ranges(rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double scale = squared[row] > 0 ? 1 / (kIntegerUnit * std::sqrt(squared[row])) : 0;
      left[row] = std::sqrt(
          round_to_shorts(from + row * width, width, static_cast<float>(scale), to + row * width));
    }
  });
  return {numbers, error};
}

std::tuple<Tensor, Tensor, Tensor> int8_rows(const Tensor& x) {
  const Arguments args("int8_rows", x);
  const auto* from = args.input<float>(x, "x", {kAny, kAny});
  const int64_t rows = x.size(0), width = x.size(1);
  const Tensor numbers = new_tensor<int8_t>(x, {rows, width});
  const Tensor units = new_tensor<float>(x, {rows});
  const Tensor error = new_tensor<double>(x, {rows});
  auto* to = data_of<int8_t>(numbers);
  auto* unit = data_of<float>(units);
  auto* left = data_of<double>(error);
  const int64_t count = mixed_entries(width);
  const std::vector<float> signs = mixing_signs(width);
  const float shrink = 1 / std::sqrt(static_cast<float>(count));  // a power of two
  share_ranges(rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
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

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("int16_rows", TORCH_BOX(&mmga::int16_rows));
  m.impl("int8_rows", TORCH_BOX(&mmga::int8_rows));
}
