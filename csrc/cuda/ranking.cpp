// The host side of the ranking operators; reference.py specifies them.
#include "cuda/ranking.cuh"

#include "cuda/host.h"
#include "ranking.h"

namespace mmga {
namespace {

void count_preceding(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& match_start,
                     const Tensor& match_item, const Tensor& match_key, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, std::optional<Tensor> removed,
                     Tensor preceding, Tensor tied, Tensor nearest, Tensor moved) {
  const ScalarType type = check_tile(values, row_term, column_term, metric);
  const int64_t rows = values.size(0);
  const int64_t width = values.size(1);
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, -1, "match_item");
  check(match_key, type, match_item.numel(), "match_key");
  check(preceding, ScalarType::Long, match_item.numel(), "preceding");
  check(tied, ScalarType::Long, rows, "tied");
  check(nearest, type, rows, "nearest");
  check(moved, ScalarType::Long, rows, "moved");
  check_left_out(ignored_start, ignored_item, row_camera, column_camera, removed, rows, width);
  if (rows == 0 || width == 0) return;
  const Device device(values);
  const auto run = [&](auto key) {
    STD_CUDA_CHECK(launch_count_preceding(
        tile_of<decltype(key)>(values, row_term, column_term, metric, offset, match_start,
                               match_item, match_key, ignored_start, ignored_item, row_camera,
                               column_camera, removed, preceding, tied, nearest, moved),
        device.stream()));
  };
  type == ScalarType::Float ? run(0.0F) : run(0.0);
}

// Sorts the matches of rows; where there is a tile, their keys are read from it before.
void sort_rows(const Tensor* values, const Tensor* row_term, const Tensor* column_term,
               int64_t metric, const Tensor& match_start, Tensor& match_item, Tensor& match_key) {
  check_floating(match_key, "match_key");
  const int64_t rows = match_start.numel() - 1;
  check(match_start, ScalarType::Long, -1, "match_start");
  STD_TORCH_CHECK(rows >= 0, "match_start must be [R + 1]");
  check(match_item, ScalarType::Long, -1, "match_item");
  check(match_key, match_key.scalar_type(), match_item.numel(), "match_key");
  if (rows == 0 || match_item.numel() == 0) return;
  const Device device(match_item);
  Tensor sorted_item = torch::stable::empty_like(match_item);
  Tensor sorted_key = torch::stable::empty_like(match_key);
  const auto run = [&](auto key) {
    using T = decltype(key);
    STD_CUDA_CHECK(launch_sort_matches(
        MatchLists<T>{values != nullptr ? input<T>(*values) : nullptr,
                      values != nullptr ? values->stride(0) : 0,
                      values != nullptr ? values->size(1) : 0,
                      row_term != nullptr ? input<T>(*row_term) : nullptr,
                      column_term != nullptr ? input<T>(*column_term) : nullptr, metric, rows,
                      input<int64_t>(match_start), output<int64_t>(match_item),
                      output<T>(match_key), output<int64_t>(sorted_item), output<T>(sorted_key)},
        device.stream()));
  };
  match_key.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
}

void sort_matches(const Tensor& match_start, Tensor match_item, Tensor match_key) {
  sort_rows(nullptr, nullptr, nullptr, kGiven, match_start, match_item, match_key);
}

void read_matches(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                  int64_t metric, const Tensor& match_start, Tensor match_item, Tensor match_key) {
  check_tile(values, row_term, column_term, metric);
  check(match_start, ScalarType::Long, values.size(0) + 1, "match_start");
  check(match_key, values.scalar_type(), match_item.numel(), "match_key");
  sort_rows(&values, &row_term, &column_term, metric, match_start, match_item, match_key);
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("count_preceding", TORCH_BOX(&mmga::count_preceding));
  m.impl("read_matches", TORCH_BOX(&mmga::read_matches));
  m.impl("sort_matches", TORCH_BOX(&mmga::sort_matches));
}
