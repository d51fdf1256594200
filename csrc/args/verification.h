// count_impostors: its arguments, checked and as raw arrays. `Kernels` computes on the CPU or on a
// CUDA device.
#pragma once

#include "args/ranking.h"

namespace mmga {

template <typename Kernels>
void count_impostors(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, bool cross_camera,
                     std::optional<Tensor> removed, std::optional<Tensor> known,
                     const Tensor& edges, Tensor counts, Tensor nearest, Tensor nearest_item) {
  const Arguments args("count_impostors", values);
  for_floating(args, values, "values", [&](auto zero) {
    using T = decltype(zero);
    auto tile = tile_view<T>(args, values, row_term, column_term, metric, offset);
    exclude(args, tile, ignored_start, ignored_item, row_camera, column_camera, removed);
    const int64_t bins = edges.numel();
    args.range("edges", bins, 1, (1 << 24) - 1);
    const Histogram histogram{cross_camera,
                              args.input<bool>(known, "known", {tile.width}),
                              args.input<double>(edges, "edges", {bins}),
                              bins,
                              args.output<int64_t>(counts, "counts", {bins + 1}),
                              args.output<double>(nearest, "nearest", {tile.rows}),
                              args.output<int64_t>(nearest_item, "nearest_item", {tile.rows})};
    Kernels::count_impostors(values, tile, histogram);
  });
}

}  // namespace mmga
