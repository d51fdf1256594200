// The operators of neighbour search: their arguments, checked and as raw arrays. `Kernels` computes
// on the CPU or on a CUDA device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/knn.h"

namespace mmga {

// Indices that fit the bits which a candidate has for them.
constexpr int64_t kMostIndices = int64_t{1} << 31;

// Checks that lists have room for one more candidate: kernels write before they count.
inline void check_room(const Arguments& args, const int32_t* counts, int64_t first, int64_t count,
                       int64_t slots) {
  if (kReadsValues) args.indices(counts + first, "counts", count, 0, slots, "the slots");
}

template <typename Kernels>
void select_neighbours(Tensor candidates, Tensor counts, Tensor thresholds, Tensor maxima,
                       std::optional<Tensor> kept, const Tensor& products, const Tensor& row_term,
                       const Tensor& column_term, bool cosine, int64_t k, int64_t first_item,
                       int64_t first_other, bool symmetric) {
  const Arguments args("select_neighbours", candidates);
  TileUpdate update{};
  update.candidates = args.output<int64_t>(candidates, "candidates", {kAny, kAny});
  const int64_t items = candidates.size(0);
  update.slots = candidates.size(1);
  update.counts = args.output<int32_t>(counts, "counts", {items});
  update.thresholds = args.output<float>(thresholds, "thresholds", {items});
  update.maxima = args.output<float>(maxima, "maxima", {items});
  args.range("k", k, 1, update.slots - 1);
  update.k = k;
  update.products = args.input<float>(products, "products", {kAny, kAny}, Gaps::kBetweenRows);
  update.item_step = products.stride(0);
  update.other_step = 1;
  update.items = products.size(0);
  update.others = products.size(1);
  update.item_term = args.input<float>(row_term, "row_term", {update.items});
  update.other_term = args.input<float>(column_term, "column_term", {update.others});
  args.range("first_item", first_item, 0, items - update.items);
  args.range("first_other", first_other, 0, (symmetric ? items : kMostIndices) - update.others);
  update.first_item = first_item;
  update.first_other = first_other;
  update.cosine = cosine;
  update.symmetric = symmetric;
  if (kept.has_value()) {
    args.require(symmetric, "kept: expected with symmetric tiles alone, found with another");
    update.kept_items = kept->dim() == 2 ? kept->size(0) : 0;
    const Extents shape{update.kept_items, std::max<int64_t>(0, items - update.kept_items)};
    update.kept = args.output<float>(*kept, "kept", shape, Gaps::kBetweenRows);
    update.kept_step = kept->stride(0);
  }
  check_room(args, update.counts, first_item, update.items, update.slots);
  if (symmetric) check_room(args, update.counts, first_other, update.others, update.slots);
  Kernels::select_neighbours(products, update);
}

template <typename Kernels>
std::tuple<Tensor, Tensor> ordered_candidates(const Tensor& candidates, const Tensor& counts,
                                              int64_t k) {
  const Arguments args("ordered_candidates", candidates);
  const auto* lists = args.input<int64_t>(candidates, "candidates", {kAny, kAny});
  const int64_t items = candidates.size(0), slots = candidates.size(1);
  args.range("k", k, 1, slots);
  const CandidateLists held{lists, args.input<int32_t>(counts, "counts", {items}), items, slots};
  const Tensor index = new_tensor<int32_t>(candidates, {items, k});
  const Tensor distances = new_tensor<float>(candidates, {items, k});
  Kernels::ordered_candidates(candidates, held, k, data_of<int32_t>(index),
                              data_of<float>(distances));
  return {index, distances};
}

template <typename Kernels>
void squared_distances_(Tensor tile, const Tensor& row_term, const Tensor& column_term,
                        bool cosine) {
  const Arguments args("squared_distances_", tile);
  auto* values = args.output<float>(tile, "tile", {kAny, kAny}, Gaps::kBetweenRows);
  const int64_t rows = tile.size(0), columns = tile.size(1);
  Kernels::squared_distances_(
      tile, {values, tile.stride(0), rows, columns, args.input<float>(row_term, "row_term", {rows}),
             args.input<float>(column_term, "column_term", {columns}), cosine});
}

template <typename Kernels>
std::tuple<Tensor, Tensor> nearest_in_rows(const Tensor& distances, int64_t k) {
  const Arguments args("nearest_in_rows", distances);
  return for_floating(args, distances, "distances", [&](auto zero) {
    using T = decltype(zero);
    const auto* values = args.input<T>(distances, "distances", {kAny, kAny}, Gaps::kBetweenRows);
    const MatrixView<T> rows{values, distances.stride(0), distances.size(0), distances.size(1)};
    args.range("k", k, 1, rows.width);
    args.range("columns of distances", rows.width, 0, kMostIndices);
    const Tensor nearest = new_tensor<T>(distances, {rows.rows, k});
    const Tensor index = new_tensor<int32_t>(distances, {rows.rows, k});
    Kernels::nearest_in_rows(distances, rows, k, data_of<T>(nearest), data_of<int32_t>(index));
    return std::tuple(nearest, index);
  });
}

}  // namespace mmga
