// The arguments of count_certain and settle_pairs, checked and as raw arrays; for both kinds.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "certified.h"
#include "checks.h"
#include "ranking.h"

namespace mmga {

inline Intervals intervals_of(const Tensor& values, const Tensor& row_term,
                              const Tensor& column_term, int64_t metric, int64_t offset,
                              const Tensor& row_radius, const Tensor& column_radius,
                              const Tensor& column_slack, const Tensor& match_start,
                              const Tensor& match_item, const Tensor& lower, const Tensor& upper,
                              const Tensor& ignored_start, const Tensor& ignored_item,
                              const std::optional<Tensor>& row_camera,
                              const std::optional<Tensor>& column_camera,
                              const std::optional<Tensor>& removed, Tensor& preceding) {
  STD_TORCH_CHECK(check_tile(values, row_term, column_term, metric) == ScalarType::Float,
                  "values must be float32");
  const int64_t rows = values.size(0), width = values.size(1), matches = match_item.numel();
  check(row_radius, ScalarType::Float, rows, "row_radius");
  check(column_radius, ScalarType::Float, width, "column_radius");
  check(column_slack, ScalarType::Float, width, "column_slack");
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, matches, "match_item");
  check(lower, ScalarType::Float, matches, "lower");
  check(upper, ScalarType::Float, matches, "upper");
  check(preceding, ScalarType::Long, matches, "preceding");
  check_left_out(ignored_start, ignored_item, row_camera, column_camera, removed, rows, width);
  using detail::pointer;
  Tile<float> tile{};
  tile.values = pointer<float>(values);
  tile.row_stride = values.stride(0);
  tile.rows = rows;
  tile.width = width;
  tile.row_term = pointer<float>(row_term);
  tile.column_term = pointer<float>(column_term);
  tile.metric = metric;
  tile.offset = offset;
  tile.match_start = pointer<int64_t>(match_start);
  tile.match_item = pointer<int64_t>(match_item);
  tile.ignored_start = pointer<int64_t>(ignored_start);
  tile.ignored_item = pointer<int64_t>(ignored_item);
  tile.row_camera = pointer<int32_t>(row_camera);
  tile.column_camera = pointer<int32_t>(column_camera);
  tile.removed = pointer<bool>(removed);
  tile.removed_stride = removed.has_value() ? removed->stride(0) : 0;
  tile.preceding = static_cast<int64_t*>(preceding.mutable_data_ptr());
  return {tile,
          pointer<float>(row_radius),
          pointer<float>(column_radius),
          pointer<float>(column_slack),
          pointer<float>(lower),
          pointer<float>(upper)};
}

// Checks rows to be multiplied; returns whether they are of integers.
inline bool check_factors(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
                  "x and y must be [R, K] and [W, K]");
  const bool integers = x.scalar_type() == ScalarType::Short;
  check(x, integers ? ScalarType::Short : ScalarType::Float, -1, "x");
  check(y, integers ? ScalarType::Short : ScalarType::Float, -1, "y");
  return integers;
}

inline Settlement settlement_of(const Tensor& undecided, const Tensor& x, const Tensor& y,
                                const Tensor& row_term, const Tensor& column_term, int64_t metric,
                                const std::optional<Tensor>& row_radius,
                                const std::optional<Tensor>& column_radius,
                                const std::optional<Tensor>& row_slack,
                                const std::optional<Tensor>& column_slack, int64_t offset,
                                const Tensor& match_start, const Tensor& match_item,
                                const Tensor& match_key, Tensor& preceding, Tensor& tied) {
  const bool integers = check_factors(x, y);
  const int64_t rows = x.size(0), columns = y.size(0), matches = match_item.numel();
  STD_TORCH_CHECK(metric == kCosine || metric == kEuclidean, "metric must be 1 or 2");
  STD_TORCH_CHECK(undecided.dim() == 2 && undecided.size(1) == 4, "undecided must be [P, 4]");
  check(undecided, ScalarType::Int, -1, "undecided");
  check(row_term, ScalarType::Double, rows, "row_term");
  check(column_term, ScalarType::Double, columns, "column_term");
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, matches, "match_item");
  check(match_key, ScalarType::Double, matches, "match_key");
  check(preceding, ScalarType::Long, matches, "preceding");
  check(tied, ScalarType::Long, rows, "tied");
  const bool bounded = row_radius.has_value();
  STD_TORCH_CHECK(column_radius.has_value() == bounded && row_slack.has_value() == bounded &&
                      column_slack.has_value() == bounded,
                  "radii and slacks come together");
  if (bounded) {
    check(*row_radius, ScalarType::Double, rows, "row_radius");
    check(*row_slack, ScalarType::Double, rows, "row_slack");
    check(*column_radius, ScalarType::Double, columns, "column_radius");
    check(*column_slack, ScalarType::Double, columns, "column_slack");
  }
  using detail::pointer;
  return {{pointer<double>(row_term), pointer<double>(column_term), metric, integers},
          pointer<double>(row_radius),
          pointer<double>(column_radius),
          pointer<double>(row_slack),
          pointer<double>(column_slack),
          offset,
          pointer<int64_t>(match_start),
          pointer<int64_t>(match_item),
          pointer<double>(match_key),
          static_cast<int64_t*>(preceding.mutable_data_ptr()),
          static_cast<int64_t*>(tied.mutable_data_ptr())};
}

}  // namespace mmga
