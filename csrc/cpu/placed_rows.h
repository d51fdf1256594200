// Vectors where they are in memory, by their number.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/checks.h"

namespace mmga {
namespace {

// Rows of one or two matrices, all of them or those of a list.
class PlacedRows {
 public:
  // `name` is that of the first matrix among the arguments; `more` are the rows after it; `place`
  // is the row of each vector, its number where there is none.
  PlacedRows(const Arguments& args, const std::string& name, const Tensor& first,
             const std::optional<Tensor>& more, const std::optional<Tensor>& place)
      : first_(args.input<float>(first, name.c_str(), {kAny, kAny})),
        more_(args.input<float>(more, ("more_" + name).c_str(), {kAny, first.size(1)})),
        place_(args.input<int64_t>(place, ("place_" + name).c_str(), {kAny})),
        split_(first.size(0)),
        depth_(first.size(1)) {
    const int64_t rows = split_ + (more.has_value() ? more->size(0) : 0);
    count_ = place.has_value() ? place->size(0) : rows;
    for (int64_t i = 0; place_ != nullptr && i < count_; ++i) {
      args.range(("place_" + name).c_str(), place_[i], 0, rows - 1);
    }
  }

  int64_t count() const { return count_; }
  int64_t depth() const { return depth_; }
  const float* operator[](int64_t vector) const {
    const int64_t row = place_ == nullptr ? vector : place_[vector];
    return row < split_ ? first_ + row * depth_ : more_ + (row - split_) * depth_;
  }

 private:
  const float* first_;
  const float* more_;     // null: there is one matrix
  const int64_t* place_;  // row of a vector; null: its number
  int64_t split_, depth_, count_;
};

}  // namespace
}  // namespace mmga
