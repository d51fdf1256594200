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
  const ScalarType type = check_tile(values, row_term, column_term, metric);
  const int64_t rows = values.size(0), width = values.size(1);
  check_left_out(ignored_start, ignored_item, row_camera, column_camera, removed, rows, width);
  if (known.has_value()) check(*known, ScalarType::Bool, width, "known");
  const int64_t bins = edges.numel();
  STD_TORCH_CHECK(bins >= 1 && bins < (1 << 24), "edges must hold 1 to 2^24 values");
  check(edges, ScalarType::Double, bins, "edges");
  check(counts, ScalarType::Long, bins + 1, "counts");
  check(nearest, ScalarType::Double, rows, "nearest");
  check(nearest_item, ScalarType::Long, rows, "nearest_item");
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
