// The operators of certified ranks: their arguments, checked and as raw arrays. `Kernels` computes
// on the CPU or on a CUDA device.
#pragma once

#include "args/ranking.h"
#include "common/certified.h"

namespace mmga {

template <typename Kernels>
Tensor count_certain(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& row_radius,
                     const Tensor& column_radius, const Tensor& column_slack,
                     const Tensor& match_start, const Tensor& match_item, const Tensor& lower,
                     const Tensor& upper, const Tensor& ignored_start, const Tensor& ignored_item,
                     std::optional<Tensor> row_camera, std::optional<Tensor> column_camera,
                     std::optional<Tensor> removed, Tensor preceding) {
  const Arguments args("count_certain", values);
  auto tile = tile_view<float>(args, values, row_term, column_term, metric, offset);
  exclude(args, tile, ignored_start, ignored_item, row_camera, column_camera, removed);
  const int64_t matches = match_item.numel();
  args.input<int64_t>(match_item, "match_item", {matches});
  const Intervals intervals{args.input<float>(row_radius, "row_radius", {tile.rows}),
                            args.input<float>(column_radius, "column_radius", {tile.width}),
                            args.input<float>(column_slack, "column_slack", {tile.width}),
                            args.offsets(match_start, "match_start", tile.rows, matches),
                            args.input<float>(lower, "lower", {matches}),
                            args.input<float>(upper, "upper", {matches}),
                            args.output<int64_t>(preceding, "preceding", {matches})};
  return Kernels::count_certain(values, tile, intervals);
}

// Checks rows that are multiplied, of float32 or of 16-bit integers, and returns how their products
// become keys.
inline PairKeys pair_keys(const Arguments& args, const Tensor& x, const Tensor& y,
                          const Tensor& row_term, const Tensor& column_term, int64_t metric) {
  args.tensor(x, "x", {ScalarType::Float, ScalarType::Short}, {kAny, kAny});
  args.tensor(y, "y", {x.scalar_type()}, {kAny, x.size(1)});
  args.range("metric", metric, kCosine, kEuclidean);
  return {args.input<double>(row_term, "row_term", {x.size(0)}),
          args.input<double>(column_term, "column_term", {y.size(0)}), metric,
          x.scalar_type() == ScalarType::Short};
}

template <typename Kernels>
Tensor refine_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                    const Tensor& row_term, const Tensor& column_term, int64_t metric,
                    std::optional<Tensor> row_radius, std::optional<Tensor> column_radius,
                    std::optional<Tensor> row_slack, std::optional<Tensor> column_slack,
                    int64_t offset, const Tensor& match_start, const Tensor& match_item,
                    const Tensor& match_key, Tensor preceding, Tensor tied) {
  const Arguments args("refine_pairs", undecided);
  args.tensor(undecided, "undecided", {ScalarType::Int}, {kAny, 4});
  const PairKeys key = pair_keys(args, x, y, row_term, column_term, metric);
  const int64_t rows = x.size(0), columns = y.size(0), matches = match_item.numel();
  const bool bounded = row_radius.has_value();
  args.require(column_radius.has_value() == bounded && row_slack.has_value() == bounded &&
                   column_slack.has_value() == bounded,
               "row_radius: expected with column_radius, row_slack and column_slack, found some "
               "without the others");
  const Settlement settlement{key,
                              args.input<double>(row_radius, "row_radius", {rows}),
                              args.input<double>(column_radius, "column_radius", {columns}),
                              args.input<double>(row_slack, "row_slack", {rows}),
                              args.input<double>(column_slack, "column_slack", {columns}),
                              offset,
                              args.offsets(match_start, "match_start", rows, matches),
                              args.input<int64_t>(match_item, "match_item", {matches}),
                              args.input<double>(match_key, "match_key", {matches}),
                              args.output<int64_t>(preceding, "preceding", {matches}),
                              args.output<int64_t>(tied, "tied", {rows})};
  const auto* pairs = static_cast<const Undecided*>(undecided.const_data_ptr());
  const int64_t* start = settlement.match_start;
  for (int64_t p = 0; kReadsValues && p < undecided.size(0); ++p) {
    const auto& [row, column, first, last] = pairs[p];
    const bool inside = row >= 0 && row < rows && column >= 0 && column < columns && first >= 0 &&
                        first <= last && last <= start[row + 1] - start[row];
    args.require(inside && (p == 0 || pairs[p - 1].row <= row), "undecided: pair ", p,
                 " is outside the tile, or rows do not ascend: found row ", row, ", column ",
                 column, ", matches ", first, " to ", last);
  }
  return Kernels::refine_pairs(undecided, x, y, settlement);
}

// Words of a row that has a bit for each of so many columns.
inline int64_t words_for(int64_t columns) { return (columns + 31) / 32; }

template <typename Kernels>
Tensor list_bits(const Tensor& bits, int64_t columns) {
  const Arguments args("list_bits", bits);
  const auto* words = args.input<int32_t>(bits, "bits", {kAny, words_for(columns)});
  return Kernels::list_bits(bits, words, bits.size(0), bits.size(1));
}

inline BoundedLists bounded_lists(const Arguments& args, const Tensor& candidates,
                                  const Tensor& counts, const Tensor& limits, int64_t kept) {
  auto* values = args.output<int32_t>(candidates, "candidates", {kAny, kAny, 3});
  const int64_t lists = candidates.size(0);
  args.range("k", kept, 1, candidates.size(1) - 1);
  return {values, args.output<int32_t>(counts, "counts", {lists}),
          args.output<float>(limits, "limits", {lists}), candidates.size(1), kept};
}

template <typename Kernels>
void add_candidates(Tensor candidates, Tensor counts, Tensor limits,
                    std::optional<Tensor> far_candidates, std::optional<Tensor> far_counts,
                    std::optional<Tensor> far_limits, int64_t k, const Tensor& bits,
                    const Tensor& x, const Tensor& y, const Tensor& row_term,
                    const Tensor& column_term, const Tensor& row_radius,
                    const Tensor& column_radius, const Tensor& row_slack,
                    const Tensor& column_slack, int64_t metric, int64_t first_row,
                    int64_t first_item) {
  const Arguments args("add_candidates_", candidates);
  const BoundedLists nearest = bounded_lists(args, candidates, counts, limits, k);
  BoundedLists farthest{};
  const bool far = far_candidates.has_value();
  args.require(far_counts.has_value() == far && far_limits.has_value() == far,
               "far_candidates: expected with far_counts and far_limits, found some without the "
               "others");
  if (far) farthest = bounded_lists(args, *far_candidates, *far_counts, *far_limits, 1);
  const auto* left = args.input<int16_t>(x, "x", {kAny, kAny});
  const auto* right = args.input<int16_t>(y, "y", {kAny, x.size(1)});
  const int64_t rows = x.size(0), columns = y.size(0), words = words_for(columns);
  args.range("first_row", first_row, 0, candidates.size(0) - rows);
  const FinePairs pairs{args.input<int32_t>(bits, "bits", {rows, words}),
                        left,
                        right,
                        rows,
                        words,
                        x.size(1),
                        pair_keys(args, x, y, row_term, column_term, metric),
                        args.input<double>(row_radius, "row_radius", {rows}),
                        args.input<double>(column_radius, "column_radius", {columns}),
                        args.input<double>(row_slack, "row_slack", {rows}),
                        args.input<double>(column_slack, "column_slack", {columns}),
                        first_row,
                        first_item};
  Kernels::add_candidates(candidates, nearest, farthest, pairs);
}

}  // namespace mmga
