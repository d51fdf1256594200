// The ranking operators: their arguments, checked and as raw arrays. `Kernels` computes on the CPU
// or on a CUDA device.
#pragma once

#include <cstdint>
#include <optional>

#include "common/checks.h"
#include "common/tile.h"

namespace mmga {

template <typename T>
TileView<T> tile_view(const Arguments& args, const Tensor& values, const Tensor& row_term,
                      const Tensor& column_term, int64_t metric, int64_t offset) {
  TileView<T> tile{};
  tile.values = args.input<T>(values, "values", {kAny, kAny}, Gaps::kBetweenRows);
  tile.row_stride = values.stride(0);
  tile.rows = values.size(0);
  tile.width = values.size(1);
  args.range("metric", metric, kGiven, kEuclidean);
  if (metric != kGiven) {
    tile.row_term = args.input<T>(row_term, "row_term", {tile.rows});
    tile.column_term = args.input<T>(column_term, "column_term", {tile.width});
  }
  tile.metric = metric;
  tile.offset = offset;
  return tile;
}

// Adds to a tile which of its items are not counted. Kernels compare ignored items with the tile's
// before they use them as columns, so that their range is not checked.
template <typename T>
void exclude(const Arguments& args, TileView<T>& tile, const Tensor& ignored_start,
             const Tensor& ignored_item, const std::optional<Tensor>& row_camera,
             const std::optional<Tensor>& column_camera, const std::optional<Tensor>& removed) {
  tile.ignored_item = args.input<int64_t>(ignored_item, "ignored_item", {kAny});
  tile.ignored_start =
      args.offsets(ignored_start, "ignored_start", tile.rows, ignored_item.numel());
  args.require(row_camera.has_value() == column_camera.has_value(),
               "row_camera: expected with column_camera, found one without the other");
  tile.row_camera = args.input<int32_t>(row_camera, "row_camera", {tile.rows});
  tile.column_camera = args.input<int32_t>(column_camera, "column_camera", {tile.width});
  tile.removed = args.input<bool>(removed, "removed", {tile.rows, tile.width}, Gaps::kBetweenRows);
  tile.removed_stride = removed.has_value() ? removed->stride(0) : 0;
}

template <typename T>
MatchLists<T> match_lists(const Arguments& args, int64_t rows, const Tensor& match_start,
                          const Tensor& match_item, const Tensor& match_key) {
  const int64_t matches = match_item.numel();
  return {args.offsets(match_start, "match_start", rows, matches),
          args.output<int64_t>(match_item, "match_item", {matches}),
          args.output<T>(match_key, "match_key", {matches}), matches};
}

template <typename Kernels>
void sort_matches(const Tensor& match_start, Tensor match_item, Tensor match_key) {
  const Arguments args("sort_matches", match_start);
  for_floating(args, match_key, "match_key", [&](auto zero) {
    using T = decltype(zero);
    const auto lists = match_lists<T>(args, kAny, match_start, match_item, match_key);
    TileView<T> tile{};  // without values: the keys are there
    tile.rows = match_start.numel() - 1;
    Kernels::sort_matches(match_start, tile, lists);
  });
}

template <typename Kernels>
void read_matches(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                  int64_t metric, const Tensor& match_start, Tensor match_item, Tensor match_key) {
  const Arguments args("read_matches", values);
  for_floating(args, values, "values", [&](auto zero) {
    using T = decltype(zero);
    const auto tile = tile_view<T>(args, values, row_term, column_term, metric, 0);
    const auto lists = match_lists<T>(args, tile.rows, match_start, match_item, match_key);
    if constexpr (kReadsValues) {
      const int64_t first = lists.start[0], count = lists.start[tile.rows] - first;
      args.indices(lists.item + first, "match_item", count, 0, tile.width, "the tile");
    }
    Kernels::sort_matches(values, tile, lists);
  });
}

template <typename Kernels>
void count_preceding(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& match_start,
                     const Tensor& match_item, const Tensor& match_key, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, std::optional<Tensor> removed,
                     Tensor preceding, Tensor tied, Tensor nearest, Tensor mismatched) {
  const Arguments args("count_preceding", values);
  for_floating(args, values, "values", [&](auto zero) {
    using T = decltype(zero);
    auto tile = tile_view<T>(args, values, row_term, column_term, metric, offset);
    exclude(args, tile, ignored_start, ignored_item, row_camera, column_camera, removed);
    const int64_t matches = match_item.numel();
    // A match outside the tile has no column here: kernels compare before they use it as one.
    const RankCounts<T> counts{args.offsets(match_start, "match_start", tile.rows, matches),
                               args.input<int64_t>(match_item, "match_item", {matches}),
                               args.input<T>(match_key, "match_key", {matches}),
                               args.output<int64_t>(preceding, "preceding", {matches}),
                               args.output<int64_t>(tied, "tied", {tile.rows}),
                               args.output<T>(nearest, "nearest", {tile.rows}),
                               args.output<int64_t>(mismatched, "mismatched", {tile.rows})};
    Kernels::count_preceding(values, tile, counts);
  });
}

}  // namespace mmga
