// The host side of the neighbour operators; reference.py specifies them.
#include "cuda/neighbours.cuh"

#include <tuple>

#include "cuda/host.h"

namespace mmga {
namespace {

void select_neighbours(Tensor candidates, Tensor counts, Tensor thresholds, Tensor maxima,
                       std::optional<Tensor> kept, Tensor products, Tensor row_term,
                       Tensor column_term, bool cosine, int64_t k, int64_t first_item,
                       int64_t first_other, bool symmetric) {
  check_rows(products, ScalarType::Float, -1, -1, "products");
  const int64_t rows = products.size(0), columns = products.size(1);
  check_rows(candidates, ScalarType::Long, -1, -1, "candidates");
  const int64_t items = candidates.size(0), slots = candidates.size(1);
  check(candidates, ScalarType::Long, -1, "candidates");
  check(counts, ScalarType::Int, items, "counts");
  check(thresholds, ScalarType::Float, items, "thresholds");
  check(maxima, ScalarType::Float, items, "maxima");
  check(row_term, ScalarType::Float, rows, "row_term");
  check(column_term, ScalarType::Float, columns, "column_term");
  STD_TORCH_CHECK(k >= 1 && slots > k, "select_neighbours: needs k >= 1 and more than k slots");
  STD_TORCH_CHECK(first_item >= 0 && first_other >= 0 && first_item + rows <= items &&
                      (!symmetric || first_other + columns <= items),
                  "select_neighbours: the tile reaches past the last item");
  STD_TORCH_CHECK(first_other + columns <= int64_t{1} << 31,
                  "select_neighbours: indices must fit 31 bits");
  const bool keeps = kept.has_value();
  STD_TORCH_CHECK(!keeps || symmetric, "select_neighbours: only symmetric tiles are kept");
  if (keeps) {
    check_rows(*kept, ScalarType::Float, -1, -1, "kept");
    STD_TORCH_CHECK(kept->size(0) + kept->size(1) == items,
                    "select_neighbours: kept must be [Q, N - Q]");
  }
  if (rows == 0 || columns == 0) return;
  const Device device(products);
  Offer offer{static_cast<uint64_t*>(candidates.mutable_data_ptr()),
              output<int32_t>(counts),
              output<float>(thresholds),
              output<float>(maxima),
              slots,
              k,
              input<float>(products),
              products.stride(0),
              1,
              rows,
              columns,
              input<float>(row_term),
              input<float>(column_term),
              first_item,
              first_other,
              cosine,
              false,
              symmetric,
              keeps ? output<float>(*kept) : nullptr,
              keeps ? kept->size(0) : 0,
              keeps ? kept->stride(0) : 0};
  STD_CUDA_CHECK(launch_offer(offer, device.stream()));
  if (!symmetric) return;
  std::swap(offer.item_step, offer.other_step);
  std::swap(offer.items, offer.others);
  std::swap(offer.item_term, offer.other_term);
  std::swap(offer.first_item, offer.first_other);
  offer.transposed = true;
  offer.kept = nullptr;  // has them from the rows
  STD_CUDA_CHECK(launch_offer(offer, device.stream()));
}

std::tuple<Tensor, Tensor> ordered_candidates(Tensor candidates, Tensor counts, int64_t k) {
  check_rows(candidates, ScalarType::Long, -1, -1, "candidates");
  check(candidates, ScalarType::Long, -1, "candidates");
  const int64_t items = candidates.size(0), slots = candidates.size(1);
  check(counts, ScalarType::Int, items, "counts");
  STD_TORCH_CHECK(k >= 1 && k <= slots, "ordered_candidates: needs 1 <= k <= S");
  const Device device(candidates);
  Tensor index = torch::stable::new_empty(candidates, {items, k}, ScalarType::Int);
  Tensor distances = torch::stable::new_empty(candidates, {items, k}, ScalarType::Float);
  STD_CUDA_CHECK(launch_ordered_candidates(
      static_cast<const uint64_t*>(candidates.data_ptr()), input<int32_t>(counts), items, slots, k,
      output<int32_t>(index), output<float>(distances), device.stream()));
  return {index, distances};
}

void squared_distances_(Tensor tile, Tensor row_term, Tensor column_term, bool cosine) {
  check_rows(tile, ScalarType::Float, -1, -1, "tile");
  check(row_term, ScalarType::Float, tile.size(0), "row_term");
  check(column_term, ScalarType::Float, tile.size(1), "column_term");
  const Device device(tile);
  STD_CUDA_CHECK(launch_squared_distances(output<float>(tile), tile.stride(0), tile.size(0),
                                          tile.size(1), input<float>(row_term),
                                          input<float>(column_term), cosine, device.stream()));
}

std::tuple<Tensor, Tensor> nearest_in_rows(Tensor distances, int64_t k) {
  check_rows(distances, -1, -1, "distances");
  check_floating(distances, "distances");
  const int64_t rows = distances.size(0), columns = distances.size(1);
  STD_TORCH_CHECK(k >= 1 && k <= columns, "nearest_in_rows: needs 1 <= k <= N");
  STD_TORCH_CHECK(columns <= int64_t{1} << 31, "nearest_in_rows: indices must fit 31 bits");
  const Device device(distances);
  Tensor nearest = torch::stable::new_empty(distances, {rows, k});
  Tensor index = torch::stable::new_empty(distances, {rows, k}, ScalarType::Int);
  const auto run = [&](auto value) {
    using T = decltype(value);
    const int64_t bytes = rows * (2 * k + 16) * nearest_slot_bytes<T>();
    Tensor scratch = torch::stable::new_empty(distances, {bytes}, ScalarType::Byte);
    STD_CUDA_CHECK(launch_nearest_in_rows<T>(
        input<T>(distances), distances.stride(0), rows, columns, k, scratch.mutable_data_ptr(),
        output<T>(nearest), output<int32_t>(index), device.stream()));
  };
  distances.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
  return {nearest, index};
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("select_neighbours", TORCH_BOX(&mmga::select_neighbours));
  m.impl("ordered_candidates", TORCH_BOX(&mmga::ordered_candidates));
  m.impl("squared_distances_", TORCH_BOX(&mmga::squared_distances_));
  m.impl("nearest_in_rows", TORCH_BOX(&mmga::nearest_in_rows));
}
