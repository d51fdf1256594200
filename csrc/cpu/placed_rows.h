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

// Rows of one or two matrices of float32 or of float16, all of them or those of a list.
class PlacedRows {
 public:
  // `name` is that of the first matrix among the arguments; `more` are the rows after it, of the
  // same type; `place` is the row of each vector, its number where there is none.
  PlacedRows(const Arguments& args, const std::string& name, const Tensor& first,
             const std::optional<Tensor>& more, const std::optional<Tensor>& place)
      : first_(static_cast<const char*>(first.const_data_ptr())),
        more_(more.has_value() ? static_cast<const char*>(more->const_data_ptr()) : nullptr),
        place_(args.input<int64_t>(place, ("place_" + name).c_str(), {kAny})),
        halves_(first.scalar_type() == ScalarType::Half) {
    args.tensor(first, name.c_str(), {ScalarType::Float, ScalarType::Half}, {kAny, kAny});
    split_ = first.size(0);
    depth_ = first.size(1);
    if (more.has_value()) {
      args.tensor(*more, ("more_" + name).c_str(), {first.scalar_type()}, {kAny, depth_});
    }
    const int64_t rows = split_ + (more.has_value() ? more->size(0) : 0);
    count_ = place.has_value() ? place->size(0) : rows;
    for (int64_t i = 0; place_ != nullptr && i < count_; ++i) {
      args.range(("place_" + name).c_str(), place_[i], 0, rows - 1);
    }
  }

  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  int64_t row_bytes() const {
    return depth_ * static_cast<int64_t>(halves_ ? sizeof(uint16_t) : sizeof(float));
  }

  // Returns a vector, which is written to `scratch` where it is of float16.
  const float* read(int64_t vector, float* scratch) const {
    const char* row = at(vector);
    if (!halves_) return reinterpret_cast<const float*>(row);
    widen_halves(reinterpret_cast<const uint16_t*>(row), depth_, scratch);
    return scratch;
  }

  void prefetch_row(int64_t vector) const { prefetch(at(vector), row_bytes()); }

 private:
  const char* at(int64_t vector) const {
    const int64_t row = place_ == nullptr ? vector : place_[vector];
    return row < split_ ? first_ + row * row_bytes() : more_ + (row - split_) * row_bytes();
  }

  const char* first_;
  const char* more_;      // null: there is one matrix
  const int64_t* place_;  // row of a vector; null: its number
  bool halves_;
  int64_t split_ = 0, depth_ = 0, count_ = 0;
};

}  // namespace
}  // namespace mmga
