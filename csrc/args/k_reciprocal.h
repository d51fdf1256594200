// The operators of k-reciprocal encoding: their arguments, checked and as raw arrays. `Kernels`
// computes on the CPU or on a CUDA device.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/knn.h"
#include "common/overlap.h"

namespace mmga {

using Sets = std::tuple<Tensor, Tensor>;                // offsets, columns
using SparseRows = std::tuple<Tensor, Tensor, Tensor>;  // offsets, columns, values

// The names of the arguments that make up sparse rows.
struct CsrNames {
  const char* offsets = "offsets";
  const char* columns = "columns";
  const char* values = "values";
};

inline Csr csr_sets(const Arguments& args, const Tensor& offsets, const Tensor& columns,
                    int64_t rows = kAny, const CsrNames& names = {}) {
  const auto* indices = args.input<int32_t>(columns, names.columns, {kAny});
  const auto* begin = args.offsets(offsets, names.offsets, rows, columns.numel());
  return {begin, indices, nullptr, offsets.numel() - 1, columns.numel()};
}

inline Csr csr_rows(const Arguments& args, const Tensor& offsets, const Tensor& columns,
                    const Tensor& values, int64_t rows = kAny, const CsrNames& names = {}) {
  Csr csr = csr_sets(args, offsets, columns, rows, names);
  csr.values = args.input<double>(values, names.values, {csr.entries});
  return csr;
}

// Checks that the columns of all rows lie in [low, high).
inline void check_columns(const Arguments& args, const Csr& csr, int64_t low, int64_t high,
                          const CsrNames& names = {}) {
  if constexpr (kReadsValues) {
    const int64_t first = csr.offsets[0], last = csr.offsets[csr.rows];
    args.indices(csr.columns + first, names.columns, last - first, low, high, "the items");
  }
}

// Checks lists of neighbours among their own items, of which the first `length` are used.
inline NeighbourLists neighbour_lists(const Arguments& args, const Tensor& neighbours,
                                      int64_t items, const char* name, int64_t length) {
  const auto* index = args.input<int32_t>(neighbours, "neighbours", {items, kAny});
  const NeighbourLists lists{index, neighbours.size(0), neighbours.size(1), length};
  args.range(name, length, 1, lists.width);
  for (int64_t i = 0; kReadsValues && i < lists.items; ++i) {
    args.indices(index + i * lists.width, "neighbours", length, 0, lists.items, "the items");
  }
  return lists;
}

template <typename Kernels>
Sets reciprocal_sets(const Tensor& neighbours, int64_t k) {
  const Arguments args("reciprocal_sets", neighbours);
  return Kernels::reciprocal_sets(neighbours, neighbour_lists(args, neighbours, kAny, "k", k));
}

template <typename Kernels>
Sets expand_sets(const Tensor& offsets, const Tensor& columns, const Tensor& half_offsets,
                 const Tensor& half_columns) {
  const Arguments args("expand_sets", offsets);
  const CsrNames half_names{"half_offsets", "half_columns"};
  const Csr sets = csr_sets(args, offsets, columns);
  const Csr half = csr_sets(args, half_offsets, half_columns, sets.rows, half_names);
  check_columns(args, sets, 0, sets.rows);
  check_columns(args, half, 0, sets.rows, half_names);
  return Kernels::expand_sets(offsets, sets, half);
}

template <typename Kernels>
Tensor listed_distances(const Tensor& offsets, const Tensor& columns, const Tensor& neighbours,
                        const Tensor& distances) {
  const Arguments args("listed_distances", offsets);
  const Csr sets = csr_sets(args, offsets, columns);
  check_columns(args, sets, 0, sets.rows);
  // Neighbours are compared with columns, and are no indices here.
  const auto* index = args.input<int32_t>(neighbours, "neighbours", {sets.rows, kAny});
  const int64_t width = neighbours.size(1);
  const Tensor result = new_tensor<double>(distances, {sets.entries});
  for_floating(args, distances, "distances", [&](auto zero) {
    using T = decltype(zero);
    Kernels::listed_distances(offsets, sets, NeighbourLists{index, sets.rows, width, width},
                              args.input<T>(distances, "distances", {sets.rows, width}),
                              data_of<double>(result));
  });
  return result;
}

template <typename Kernels>
Tensor encode(const Tensor& offsets, const Tensor& distances, std::optional<Tensor> maxima) {
  const Arguments args("encode", offsets);
  const auto* values = args.input<double>(distances, "distances", {kAny});
  const auto* begin = args.offsets(offsets, "offsets", kAny, distances.numel());
  const int64_t rows = offsets.numel() - 1;
  const Tensor weights = new_tensor<double>(distances, {distances.numel()});
  Kernels::encode(offsets, Csr{begin, nullptr, values, rows, distances.numel()},
                  args.input<double>(maxima, "maxima", {rows}), data_of<double>(weights));
  return weights;
}

template <typename Kernels>
SparseRows average_rows(const Tensor& offsets, const Tensor& columns, const Tensor& values,
                        const Tensor& neighbours, int64_t k2) {
  const Arguments args("average_rows", offsets);
  const Csr rows = csr_rows(args, offsets, columns, values);
  check_columns(args, rows, 0, rows.rows);
  const NeighbourLists lists = neighbour_lists(args, neighbours, rows.rows, "k2", k2);
  return Kernels::average_rows(offsets, rows, lists);
}

template <typename Kernels>
SparseRows transpose_rows(const Tensor& offsets, const Tensor& columns, const Tensor& values,
                          int64_t first) {
  const Arguments args("transpose_rows", offsets);
  const Csr rows = csr_rows(args, offsets, columns, values);
  check_columns(args, rows, 0, rows.rows);
  args.range("first", first, 0, rows.rows);
  return Kernels::transpose_rows(offsets, rows, first);
}

}  // namespace mmga
