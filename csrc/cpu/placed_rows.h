// Vectors where they are in memory, by their number.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/checks.h"
#include "common/dispatch.h"
#include "cpu/products.h"

#if MMGA_X86_CLONES
#include <immintrin.h>
#endif

namespace mmga {
namespace {

inline void widen_halves_plain(const uint16_t* halves, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(halves[i]);
}

#if MMGA_X86_CLONES
// By the processor's conversion, which is exact, subnormal numbers included.
__attribute__((target("arch=x86-64-v3"))) inline void widen_halves_256(const uint16_t* halves,
                                                                       int64_t count, float* to) {
  constexpr int64_t kLanes = 8;
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(some));
  }
  widen_halves_plain(halves + whole, count - whole, to + whole);
}
#endif

inline void widen_halves(const uint16_t* halves, int64_t count, float* to) {
#if MMGA_X86_CLONES
  static const bool has_conversion = __builtin_cpu_supports("x86-64-v3") != 0;
  if (has_conversion) return widen_halves_256(halves, count, to);
#endif
  widen_halves_plain(halves, count, to);
}

MMGA_VECTOR_CLONES inline void widen_bytes(const int8_t* bytes, float scale, int64_t count,
                                           float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(bytes[i]) * scale;
}

// Rows of one or two matrices of float32, float16 or int8, all of them or those of a list.
class PlacedRows {
 public:
  // `name` is that of the first matrix among the arguments; `more` are the rows after it, of the
  // same type; `place` is the row of each vector, its number where there is none; `scale` is what
  // the numbers of each row of int8 are multiplied with, 1 where there is none.
  PlacedRows(const Arguments& args, const std::string& name, const Tensor& first,
             const std::optional<Tensor>& more, const std::optional<Tensor>& place,
             const std::optional<Tensor>& scale)
      : first_(static_cast<const char*>(first.const_data_ptr())),
        more_(more.has_value() ? static_cast<const char*>(more->const_data_ptr()) : nullptr),
        place_(args.input<int64_t>(place, ("place_" + name).c_str(), {kAny})),
        type_(first.scalar_type()) {
    args.tensor(first, name.c_str(), {ScalarType::Float, ScalarType::Half, ScalarType::Char},
                {kAny, kAny});
    split_ = first.size(0);
    depth_ = first.size(1);
    if (more.has_value()) {
      args.tensor(*more, ("more_" + name).c_str(), {type_}, {kAny, depth_});
    }
    const int64_t rows = split_ + (more.has_value() ? more->size(0) : 0);
    count_ = place.has_value() ? place->size(0) : rows;
    scale_ = args.input<float>(scale, ("scale_" + name).c_str(), {rows});
    args.require(scale_ == nullptr || type_ == ScalarType::Char, "scale_", name,
                 ": expected with rows of int8, found it with others");
    for (int64_t i = 0; place_ != nullptr && i < count_; ++i) {
      args.range(("place_" + name).c_str(), place_[i], 0, rows - 1);
    }
  }

  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t row_bytes() const {
    return depth_ * (type_ == ScalarType::Float ? 4 : type_ == ScalarType::Half ? 2 : 1);
  }

  // Returns a vector, which is written to `scratch` where it is not of float32.
  const float* read(int64_t vector, float* scratch) const {
    const int64_t row = row_of(vector);
    const char* stored = at(row);
    if (type_ == ScalarType::Float) return reinterpret_cast<const float*>(stored);
    if (type_ == ScalarType::Half) {
      widen_halves(reinterpret_cast<const uint16_t*>(stored), depth_, scratch);
    } else {
      const float scale = scale_ == nullptr ? 1 : scale_[row];
      widen_bytes(reinterpret_cast<const int8_t*>(stored), scale, depth_, scratch);
    }
    return scratch;
  }

  void prefetch_row(int64_t vector) const { prefetch(at(row_of(vector)), row_bytes()); }

 private:
  int64_t row_of(int64_t vector) const { return place_ == nullptr ? vector : place_[vector]; }
  const char* at(int64_t row) const {
    return row < split_ ? first_ + row * row_bytes() : more_ + (row - split_) * row_bytes();
  }

  const char* first_;
  const char* more_;      // null: there is one matrix
  const int64_t* place_;  // row of a vector; null: its number
  const float* scale_ = nullptr;
  ScalarType type_;
  int64_t split_ = 0, depth_ = 0, count_ = 0;
};

}  // namespace
}  // namespace mmga
