// Certified neighbours on the CPU: pairs of a tile of approximate keys that may be near (or far)
// enough for one of their items, a filter of them by products of integers, and lists of the nearest
// by exact distances. mmga/ops/reference specifies every function.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "args/certified.h"
#include "common/dispatch.h"
#include "cpu/int8_products.h"
#include "cpu/keys.h"
#include "cpu/pairs.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Bounds on the error of keys, and which keys are wanted; see filter_candidates in
// mmga/ops/reference.
template <typename T>
struct Limits {
  const T* row_radius;
  const T* column_radius;
  const T* row_slack;
  const T* column_slack;
  const T* near_row;
  const T* near_column;
  const T* far_row;
  const T* far_column;

  bool want(T key, int64_t row, int64_t column) const {
    const T width =
        row_radius[row] * column_radius[column] + (row_slack[row] + column_slack[column]);
    return key - width <= std::max(near_row[row], near_column[column]) ||
           key + width >= std::min(far_row[row], far_column[column]);
  }
};

template <typename T>
Limits<T> limits_of(const Arguments& args, int64_t rows, int64_t columns, const Tensor& row_radius,
                    const Tensor& column_radius, const Tensor& row_slack,
                    const Tensor& column_slack, const Tensor& near_row, const Tensor& near_column,
                    const Tensor& far_row, const Tensor& far_column) {
  return {args.input<T>(row_radius, "row_radius", {rows}),
          args.input<T>(column_radius, "column_radius", {columns}),
          args.input<T>(row_slack, "row_slack", {rows}),
          args.input<T>(column_slack, "column_slack", {columns}),
          args.input<T>(near_row, "near_row", {rows}),
          args.input<T>(near_column, "near_column", {columns}),
          args.input<T>(far_row, "far_row", {rows}),
          args.input<T>(far_column, "far_column", {columns})};
}

// Returns a bit for each of a group's pairs that is wanted: bit v * kLanes + lane.
MMGA_INLINE uint64_t wanted_body(const Limits<float>& limits, const float* keys, int64_t row,
                                 int64_t column) {
  using V = Vector<float>::type;
  using M = Vector<float>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  constexpr int kVectors = kGroup / kLanes;
  const V near_row = V{} + limits.near_row[row];
  const V far_row = V{} + limits.far_row[row];
  const float row_radius = limits.row_radius[row], row_slack = limits.row_slack[row];
  M wanted[kVectors];
  M any = M{};
  for (int v = 0; v < kVectors; ++v) {
    V key, radius, slack, near, far;
    load(key, keys + v * kLanes);
    load(radius, limits.column_radius + column + v * kLanes);
    load(slack, limits.column_slack + column + v * kLanes);
    load(near, limits.near_column + column + v * kLanes);
    load(far, limits.far_column + column + v * kLanes);
    near = near > near_row ? near : near_row;
    far = far < far_row ? far : far_row;
    const V width = row_radius * radius + (row_slack + slack);
    wanted[v] = (key - width <= near) | (key + width >= far);
    any |= wanted[v];
  }
  return any_lane(any) ? bits_of_masks(wanted) : 0;
}

MMGA_VECTOR_CLONES void find_wanted(const Limits<float>& limits, const float* keys, int64_t row,
                                    int64_t start, int64_t groups, uint64_t* bits) {
  for (int64_t group = 0; group < groups; ++group) {
    bits[group] = wanted_body(limits, keys + group * kGroup, row, start + group * kGroup);
  }
}

struct Pair {
  int32_t row, column;
};

class RowFilter {
 public:
  RowFilter(const TileView<float>& tile, const Limits<float>& limits, std::vector<Pair>& found)
      : tile_(tile), limits_(limits), found_(found) {}

  // Lists the wanted pairs of a row from column `from` on.
  void list(int64_t row, int64_t from) {
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      const int64_t width = std::min(kSegment, tile_.width - start);
      if (start + width <= from) continue;
      make_segment(tile_, row, start, width, keys_, minima_);
      const int64_t groups = width / kGroup;
      find_wanted(limits_, keys_, row, start, groups, bits_);
      for (int64_t group = 0; group < groups; ++group) {
        for (uint64_t bits = bits_[group]; bits != 0; bits &= bits - 1) {
          add(row, start + group * kGroup + __builtin_ctzll(bits), from);
        }
      }
      for (int64_t j = groups * kGroup; j < width; ++j) {
        if (limits_.want(keys_[j], row, start + j)) add(row, start + j, from);
      }
    }
  }

 private:
  void add(int64_t row, int64_t column, int64_t from) {
    if (column < from) return;
    found_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(column)});
  }

  const TileView<float>& tile_;
  const Limits<float>& limits_;
  std::vector<Pair>& found_;
  alignas(64) float keys_[kSegment];
  float minima_[kSegment / kGroup];
  uint64_t bits_[kSegment / kGroup];
};

Tensor filter_candidates(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                         int64_t metric, const Tensor& row_radius, const Tensor& column_radius,
                         const Tensor& row_slack, const Tensor& column_slack,
                         const Tensor& near_row, const Tensor& near_column, const Tensor& far_row,
                         const Tensor& far_column, int64_t first_item, int64_t first_other,
                         bool symmetric) {
  const Arguments args("filter_candidates", values);
  const auto tile = tile_view<float>(args, values, row_term, column_term, metric, first_other);
  const auto limits =
      limits_of<float>(args, tile.rows, tile.width, row_radius, column_radius, row_slack,
                       column_slack, near_row, near_column, far_row, far_column);
  OrderedChunks<Pair> chunks;
  chunks.fill(tile.rows, rows_per_thread(tile.width),
              [&](int64_t begin, int64_t end, std::vector<Pair>& found) {
                RowFilter filter(tile, limits, found);
                for (int64_t row = begin; row < end; ++row) {
                  const int64_t from = symmetric ? first_item + row + 1 - first_other : 0;
                  filter.list(row, std::max<int64_t>(0, from));
                }
              });
  return chunks.joined(values);
}

// filter_candidates of the products of 8-bit rows, of which no more than a strip is held.
Tensor filter_int8_candidates(const Tensor& x, const Tensor& y, const Tensor& row_unit,
                              const Tensor& column_unit, const Tensor& row_term,
                              const Tensor& column_term, int64_t metric, const Tensor& row_radius,
                              const Tensor& column_radius, const Tensor& row_slack,
                              const Tensor& column_slack, const Tensor& near_row,
                              const Tensor& near_column, const Tensor& far_row,
                              const Tensor& far_column, int64_t first_item, int64_t first_other,
                              bool symmetric) {
  const Arguments args("filter_int8_candidates", x);
  const auto* rows = args.input<int8_t>(x, "x", {kAny, kAny});
  const int64_t height = x.size(0), depth = x.size(1), width = y.size(0);
  args.range("columns of x", depth, 0, kWidestBytes);
  PackedColumns packed(args.input<int8_t>(y, "y", {width, depth}), width, depth);
  const auto* own = args.input<float>(row_unit, "row_unit", {height});
  const auto* others = args.input<float>(column_unit, "column_unit", {width});
  args.range("metric", metric, kCosine, kEuclidean);
  TileView<float> tile{};
  tile.row_stride = tile.width = width;
  tile.rows = height;
  tile.row_term = args.input<float>(row_term, "row_term", {height});
  tile.column_term = args.input<float>(column_term, "column_term", {width});
  tile.metric = metric;
  const auto limits = limits_of<float>(args, height, width, row_radius, column_radius, row_slack,
                                       column_slack, near_row, near_column, far_row, far_column);
  const auto first_wanted = [&](int64_t row) {
    return symmetric ? std::max<int64_t>(0, first_item + row + 1 - first_other) : 0;
  };
  OrderedChunks<Pair> chunks;
  chunks.share_out(height, kRowChunk, [&](const auto& next, const auto& keep) {
    StripOfProducts strip(packed);
    Lines<float> products(kRowChunk * width);
    TileView<float> part = tile;
    for (int64_t begin = next(); begin < height; begin = next()) {
      const int64_t end = std::min(height, begin + kRowChunk), from = first_wanted(begin);
      if (from >= width) continue;
      strip.compute(rows + begin * depth, end - begin, from / kPanel, own + begin, others,
                    products.get(), width);
      part.values = products.get() - begin * width;
      std::vector<Pair> found;
      RowFilter filter(part, limits, found);
      for (int64_t row = begin; row < end; ++row) filter.list(row, first_wanted(row));
      keep(begin, std::move(found));
    }
  });
  return chunks.joined(x);
}

Tensor refine_candidates(const Tensor& pairs, const Tensor& x, const Tensor& y,
                         const Tensor& row_term, const Tensor& column_term, int64_t metric,
                         const Tensor& row_radius, const Tensor& column_radius,
                         const Tensor& row_slack, const Tensor& column_slack,
                         const Tensor& near_row, const Tensor& near_column, const Tensor& far_row,
                         const Tensor& far_column) {
  const Arguments args("refine_candidates", pairs);
  args.tensor(pairs, "pairs", {ScalarType::Int}, {kAny, 2});
  const PairKeys key = pair_keys(args, x, y, row_term, column_term, metric);
  const int64_t rows = x.size(0), columns = y.size(0), count = pairs.size(0);
  const auto limits = limits_of<double>(args, rows, columns, row_radius, column_radius, row_slack,
                                        column_slack, near_row, near_column, far_row, far_column);
  const auto* pair = static_cast<const Pair*>(pairs.const_data_ptr());
  for (int64_t p = 0; p < count; ++p) {
    const auto& [row, column] = pair[p];
    args.require(row >= 0 && row < rows && column >= 0 && column < columns, "pairs: pair ", p,
                 " is outside the tile: found row ", row, ", column ", column);
  }
  OrderedChunks<Pair> chunks;
  chunks.fill(count, kPairGrain, [&](int64_t begin, int64_t end, std::vector<Pair>& wanted) {
    sum_rows(x, y, metric, pair, begin, end, [&](int64_t p, double sum) {
      const auto& [row, column] = pair[p];
      if (limits.want(key(row, column, sum), row, column)) wanted.push_back(pair[p]);
    });
  });
  return chunks.joined(pairs);
}

// Lists of candidates with exact distances; one thread inserts into a list at a time.
struct ExactLists {
  int32_t* index;
  double* distance;
  int32_t* counts;
  double* maxima;
  double* limits;
  int64_t slots, k;

  void insert(int64_t item, int64_t other, double value,
              std::vector<std::pair<double, int32_t>>& sorted) {
    maxima[item] = value > maxima[item] ? value : maxima[item];
    if (!(value <= limits[item])) return;
    const int32_t count = counts[item]++;
    index[item * slots + count] = static_cast<int32_t>(other);
    distance[item * slots + count] = value;
    if (counts[item] < slots) return;
    sorted.clear();
    for (int64_t s = item * slots; s < (item + 1) * slots; ++s) {
      sorted.emplace_back(distance[s], index[s]);
    }
    std::partial_sort(sorted.begin(), sorted.begin() + k, sorted.end());
    for (int64_t s = 0; s < k; ++s) {
      distance[item * slots + s] = sorted[s].first;
      index[item * slots + s] = sorted[s].second;
    }
    counts[item] = static_cast<int32_t>(k);
    limits[item] = std::min(limits[item], sorted[k - 1].first);
  }
};

void insert_candidates(Tensor index, Tensor distance, Tensor counts, Tensor maxima,
                       const Tensor& pairs, const Tensor& distances, Tensor limits,
                       int64_t first_item, int64_t first_other, bool both, int64_t k) {
  const Arguments args("insert_candidates", index);
  auto* indices = args.output<int32_t>(index, "index", {kAny, kAny});
  const int64_t items = index.size(0), slots = index.size(1);
  args.range("k", k, 1, slots - 1);
  args.tensor(pairs, "pairs", {ScalarType::Int}, {kAny, 2});
  const int64_t count = pairs.size(0);
  ExactLists lists{indices,
                   args.output<double>(distance, "distance", {items, slots}),
                   args.output<int32_t>(counts, "counts", {items}),
                   args.output<double>(maxima, "maxima", {items}),
                   args.output<double>(limits, "limits", {items}),
                   slots,
                   k};
  const auto* pair = static_cast<const Pair*>(pairs.const_data_ptr());
  const auto* value = args.input<double>(distances, "distances", {count});
  const auto check_room = [&](int64_t item) {
    args.require(lists.counts[item] >= 0 && lists.counts[item] < slots, "counts: expected 0 to ",
                 slots - 1, ", found ", lists.counts[item], " at ", item);
  };
  for (int64_t p = 0; p < count; ++p) {
    const int64_t item = first_item + pair[p].row, other = first_other + pair[p].column;
    args.require(item >= 0 && item < items && other >= 0 && (!both || other < items),
                 "pairs: pair ", p, " is of no item: found ", item, " and ", other, " of ", items);
    check_room(item);
    if (both) check_room(other);
  }
  // Each part of the items reads all pairs and inserts its own.
  const int64_t threads = kernel_threads();
  const int64_t part = std::max((items + threads - 1) / threads, kGrain / 8);
  const int64_t parts = (items + part - 1) / part;
  share(parts, [&](const auto& next) {
    std::vector<std::pair<double, int32_t>> sorted;
    for (int64_t begin = next() * part; begin < items; begin = next() * part) {
      const int64_t end = begin + part;
      for (int64_t p = 0; p < count; ++p) {
        const int64_t item = first_item + pair[p].row, other = first_other + pair[p].column;
        if (item >= begin && item < end) lists.insert(item, other, value[p], sorted);
        if (both && other >= begin && other < end) lists.insert(other, item, value[p], sorted);
      }
    }
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("filter_candidates", TORCH_BOX(&mmga::filter_candidates));
  m.impl("filter_int8_candidates", TORCH_BOX(&mmga::filter_int8_candidates));
  m.impl("refine_candidates", TORCH_BOX(&mmga::refine_candidates));
  m.impl("insert_candidates", TORCH_BOX(&mmga::insert_candidates));
}
