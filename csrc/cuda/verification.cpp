// The host side of count_impostors; reference.py specifies it.
#include "cuda/verification.cuh"

#include "cuda/host.h"
#include "tile.h"

namespace mmga {
namespace {

void count_impostors(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, bool cross_camera,
                     std::optional<Tensor> removed, std::optional<Tensor> known,
                     const Tensor& edges, Tensor counts, Tensor nearest, Tensor nearest_item) {
  check_rows(values, std::nullopt, -1, -1, "values");
  check_floating(values, "values");
  const ScalarType type = values.scalar_type();
  const int64_t rows = values.size(0), width = values.size(1);
  STD_TORCH_CHECK(metric >= kGiven && metric <= kEuclidean, "metric must be 0, 1 or 2");
  if (metric != kGiven) {
    check_list(row_term, type, rows, "row_term");
    check_list(column_term, type, width, "column_term");
  }
  check_list(ignored_start, ScalarType::Long, rows + 1, "ignored_start");
  check_list(ignored_item, ScalarType::Long, -1, "ignored_item");
  STD_TORCH_CHECK(row_camera.has_value() == column_camera.has_value(),
                  "row_camera and column_camera come together");
  if (row_camera.has_value()) {
    check_list(*row_camera, ScalarType::Int, rows, "row_camera");
    check_list(*column_camera, ScalarType::Int, width, "column_camera");
  }
  if (removed.has_value()) check_rows(*removed, ScalarType::Bool, rows, width, "removed");
  if (known.has_value()) check_list(*known, ScalarType::Bool, width, "known");
  const int64_t bins = edges.numel();
  STD_TORCH_CHECK(bins >= 1 && bins < (1 << 24), "edges must hold 1 to 2^24 values");
  check_list(edges, ScalarType::Double, bins, "edges");
  check_list(counts, ScalarType::Long, bins + 1, "counts");
  check_list(nearest, ScalarType::Double, rows, "nearest");
  check_list(nearest_item, ScalarType::Long, rows, "nearest_item");
  if (rows == 0 || width == 0) return;
  const Device device(values);
  const auto run = [&](auto key) {
    using T = decltype(key);
    STD_CUDA_CHECK(launch_count_impostors(Impostors<T>{input<T>(values),
                                                       values.stride(0),
                                                       rows,
                                                       width,
                                                       input<T>(row_term),
                                                       input<T>(column_term),
                                                       metric,
                                                       offset,
                                                       input<int64_t>(ignored_start),
                                                       input<int64_t>(ignored_item),
                                                       input<int32_t>(row_camera),
                                                       input<int32_t>(column_camera),
                                                       cross_camera,
                                                       input<bool>(removed),
                                                       removed.has_value() ? removed->stride(0) : 0,
                                                       input<bool>(known),
                                                       input<double>(edges),
                                                       bins,
                                                       output<int64_t>(counts),
                                                       output<double>(nearest),
                                                       output<int64_t>(nearest_item)},
                                          device.stream()));
  };
  type == ScalarType::Float ? run(0.0F) : run(0.0);
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) { m.impl("count_impostors", TORCH_BOX(&mmga::count_impostors)); }
