// Features as integers of 8 or 16 bits on the CPU. mmga/ops/reference specifies every function.

#include "common/quantize.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "common/certified.h"
#include "common/checks.h"
#include "common/dispatch.h"
#include "cpu/placed_rows.h"
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

// Writes rows as integers of 16 bits, given their squared norms.
class Shorts {
 public:
  Shorts(const Arguments& args, const Tensor& like, const Tensor& norms, int64_t rows,
         int64_t width)
      : numbers(new_tensor<int16_t>(like, {rows, width})),
        error(new_tensor<double>(like, {rows})),
        squared_(args.input<double>(norms, "norms", {rows})),
        to_(data_of<int16_t>(numbers)),
        left_(data_of<double>(error)),
        width_(width) {
    args.range("columns of x", width, 0, kWidestShorts);
  }

  void write(int64_t row, const float* from) const {
    const double norm = squared_[row];
    const bool is_short = norm < kLeastSquared;
    const double scale = is_short ? 0 : 1 / (kIntegerUnit * std::sqrt(norm));
    left_[row] =
        std::sqrt(round_to_shorts(from, width_, static_cast<float>(scale), to_ + row * width_));
    if (is_short && norm > 0) left_[row] = 1 / kIntegerUnit;
  }

  const Tensor numbers, error;

 private:
  const double* squared_;
  int16_t* to_;
  double* left_;
  int64_t width_;
};

// Writes rows as integers of at most `most`.
class Bytes {
 public:
  Bytes(const Arguments& args, const Tensor& like, int64_t rows, int64_t width, int64_t most)
      : numbers(new_tensor<int8_t>(like, {rows, width})),
        unit(new_tensor<float>(like, {rows})),
        error(new_tensor<double>(like, {rows})),
        to_(data_of<int8_t>(numbers)),
        unit_(data_of<float>(unit)),
        left_(data_of<double>(error)),
        width_(width),
        mixed_(mixed_entries(width)),
        most_(static_cast<float>(most)),
        shrink_(1 / std::sqrt(static_cast<float>(mixed_))),  // a power of two
        signs_(mixing_signs(width)) {
    args.range("most", most, 1, kMostOfByte);
  }

  // `scratch`: memory for a row.
  void write(int64_t row, const float* from, float* scratch) const {
    mix(from, signs_.data(), width_, mixed_, scratch);
    const float largest = largest_of(scratch, width_);
    const float scale = largest < kLeastEntry ? 0 : most_ / largest;
    const float one = largest / most_;
    const double rest = round_to_bytes(scratch, width_, scale, one, to_ + row * width_);
    unit_[row] = one * shrink_;
    left_[row] = std::sqrt(rest) * shrink_;
  }

  const Tensor numbers, unit, error;

 private:
  int8_t* to_;
  float* unit_;
  double* left_;
  int64_t width_, mixed_;
  float most_, shrink_;
  std::vector<float> signs_;
};

std::tuple<Tensor, Tensor> int16_rows(const Tensor& x, const Tensor& norms) {
  const Arguments args("int16_rows", x);
  const auto* from = args.input<float>(x, "x", {kAny, kAny});
  const int64_t rows = x.size(0), width = x.size(1);
  const Shorts shorts(args, x, norms, rows, width);
  share_ranges(rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) shorts.write(row, from + row * width);
  });
  return {shorts.numbers, shorts.error};
}

std::tuple<Tensor, Tensor, Tensor> int8_rows(const Tensor& x, int64_t most) {
  const Arguments args("int8_rows", x);
  const auto* from = args.input<float>(x, "x", {kAny, kAny});
  const int64_t rows = x.size(0), width = x.size(1);
  const Bytes bytes(args, x, rows, width, most);
  share_ranges(rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(width);
    for (int64_t row = begin; row < end; ++row) {
      bytes.write(row, from + row * width, scratch.data());
    }
  });
  return {bytes.numbers, bytes.unit, bytes.error};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rounded_rows(
    const Tensor& x, std::optional<Tensor> more_x, std::optional<Tensor> place_x,
    std::optional<Tensor> scale_x, const Tensor& chosen, const Tensor& norms, int64_t most) {
  const Arguments args("rounded_rows", x);
  const PlacedRows from(args, "x", x, more_x, place_x, scale_x);
  const auto* vector = args.input<int64_t>(chosen, "chosen", {kAny});
  const int64_t rows = chosen.size(0), width = from.depth();
  for (int64_t row = 0; row < rows; ++row) args.range("chosen", vector[row], 0, from.count() - 1);
  const Bytes bytes(args, x, rows, width, most);
  const Shorts shorts(args, x, norms, rows, width);
  share_ranges(rows, rows_per_thread(2 * width), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(width), widened(width);
    for (int64_t row = begin; row < end; ++row) {
      const float* features = from.read(vector[row], widened.data());
      bytes.write(row, features, scratch.data());
      shorts.write(row, features);
    }
  });
  return {bytes.numbers, bytes.unit, bytes.error, shorts.numbers, shorts.error};
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("int16_rows", TORCH_BOX(&mmga::int16_rows));
  m.impl("int8_rows", TORCH_BOX(&mmga::int8_rows));
  m.impl("rounded_rows", TORCH_BOX(&mmga::rounded_rows));
}
