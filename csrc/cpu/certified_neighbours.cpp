// Certified neighbours on the CPU: pairs of a tile of approximate keys that may be near (or far)
// enough for one of their items, fewer of them by products of integers, and lists that keep the
// nearest by exact distances. mmga/ops/reference.py specifies every function.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "certified_arguments.h"
#include "checks.h"
#include "common.h"
#include "keys.h"
#include "pairs.h"
#include "ranking.h"

namespace mmga {
namespace {

// How far keys may be off, and which of them are wanted; see open_pairs in reference.py.
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
Limits<T> limits_of(ScalarType type, int64_t rows, int64_t columns, const Tensor& row_radius,
                    const Tensor& column_radius, const Tensor& row_slack,
                    const Tensor& column_slack, const Tensor& near_row, const Tensor& near_column,
                    const Tensor& far_row, const Tensor& far_column) {
  check(row_radius, type, rows, "row_radius");
  check(column_radius, type, columns, "column_radius");
  check(row_slack, type, rows, "row_slack");
  check(column_slack, type, columns, "column_slack");
  check(near_row, type, rows, "near_row");
  check(near_column, type, columns, "near_column");
  check(far_row, type, rows, "far_row");
  check(far_column, type, columns, "far_column");
  using detail::pointer;
  return {pointer<T>(row_radius),   pointer<T>(column_radius), pointer<T>(row_slack),
          pointer<T>(column_slack), pointer<T>(near_row),      pointer<T>(near_column),
          pointer<T>(far_row),      pointer<T>(far_column)};
}

// What open_pairs is given.
struct Openings {
  const float* values;
  int64_t row_stride, width, metric;
  const float* row_term;
  const float* column_term;
  Limits<float> limits;
};

// Sets a bit for each of a group's pairs that is wanted: bit v * kLanes + lane.
MMGA_INLINE uint64_t wanted_body(const Openings& in, const float* keys, int64_t row,
                                 int64_t column) {
  using V = Vector<float>::type;
  using M = Vector<float>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  constexpr int kVectors = kGroup / kLanes;
  const Limits<float>& limits = in.limits;
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
  int32_t some = 0;
  for (int lane = 0; lane < kLanes; ++lane) some |= any[lane];
  if (some == 0) return 0;
  return bits_of_masks(wanted);
}

MMGA_VECTOR_CLONES void find_wanted(const Openings& in, const float* keys, int64_t row,
                                    int64_t start, int64_t groups, uint64_t* bits) {
  for (int64_t group = 0; group < groups; ++group) {
    bits[group] = wanted_body(in, keys + group * kGroup, row, start + group * kGroup);
  }
}

struct Pair {
  int32_t row, column;
};

class RowOfOpenings {
 public:
  RowOfOpenings(const Openings& openings, std::vector<Pair>& found)
      : in_(openings), found_(found) {}

  // Lists the wanted pairs of a row from column `from` on.
  void list(int64_t row, int64_t from) {
    for (int64_t start = 0; start < in_.width; start += kSegment) {
      const int64_t width = std::min(kSegment, in_.width - start);
      if (start + width <= from) continue;
      make_keys(in_.values + row * in_.row_stride + start, width, in_.metric,
                in_.metric == kGiven ? 0.0F : in_.row_term[row],
                in_.metric == kGiven ? nullptr : in_.column_term + start, keys_, minima_);
      const int64_t groups = width / kGroup;
      find_wanted(in_, keys_, row, start, groups, bits_);
      for (int64_t group = 0; group < groups; ++group) {
        for (uint64_t bits = bits_[group]; bits != 0; bits &= bits - 1) {
          add(row, start + group * kGroup + __builtin_ctzll(bits), from);
        }
      }
      for (int64_t j = groups * kGroup; j < width; ++j) {
        if (in_.limits.want(keys_[j], row, start + j)) add(row, start + j, from);
      }
    }
  }

 private:
  void add(int64_t row, int64_t column, int64_t from) {
    if (column < from) return;
    found_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(column)});
  }

  const Openings& in_;
  std::vector<Pair>& found_;
  alignas(64) float keys_[kSegment];
  float minima_[kSegment / kGroup];
  uint64_t bits_[kSegment / kGroup];
};

Tensor open_pairs(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                  int64_t metric, const Tensor& row_radius, const Tensor& column_radius,
                  const Tensor& row_slack, const Tensor& column_slack, const Tensor& near_row,
                  const Tensor& near_column, const Tensor& far_row, const Tensor& far_column,
                  int64_t first_item, int64_t first_other, bool symmetric) {
  STD_TORCH_CHECK(check_tile(values, row_term, column_term, metric) == ScalarType::Float,
                  "values must be float32");
  const int64_t rows = values.size(0), width = values.size(1);
  using detail::pointer;
  const Openings openings{
      pointer<float>(values),
      values.stride(0),
      width,
      metric,
      pointer<float>(row_term),
      pointer<float>(column_term),
      limits_of<float>(ScalarType::Float, rows, width, row_radius, column_radius, row_slack,
                       column_slack, near_row, near_column, far_row, far_column)};
  Pieces<Pair> pieces;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<Pair> found;
    RowOfOpenings row_of(openings, found);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t from = symmetric ? first_item + row + 1 - first_other : 0;
      row_of.list(row, std::max<int64_t>(0, from));
    }
    pieces.add(begin, std::move(found));
  });
  return pieces.joined(values);
}

Tensor narrow_pairs(const Tensor& pairs, const Tensor& x, const Tensor& y, const Tensor& row_term,
                    const Tensor& column_term, int64_t metric, const Tensor& row_radius,
                    const Tensor& column_radius, const Tensor& row_slack,
                    const Tensor& column_slack, const Tensor& near_row, const Tensor& near_column,
                    const Tensor& far_row, const Tensor& far_column) {
  STD_TORCH_CHECK(metric == kCosine || metric == kEuclidean, "metric must be 1 or 2");
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(1) == 2, "pairs must be [P, 2]");
  check(pairs, ScalarType::Int, -1, "pairs");
  const bool integers = check_factors(x, y);
  const int64_t rows = x.size(0), columns = y.size(0), count = pairs.size(0);
  check(row_term, ScalarType::Double, rows, "row_term");
  check(column_term, ScalarType::Double, columns, "column_term");
  const auto limits =
      limits_of<double>(ScalarType::Double, rows, columns, row_radius, column_radius, row_slack,
                        column_slack, near_row, near_column, far_row, far_column);
  using detail::pointer;
  const PairKeys key{pointer<double>(row_term), pointer<double>(column_term), metric, integers};
  const auto* pair = static_cast<const Pair*>(pairs.data_ptr());
  for (int64_t p = 0; p < count; ++p) {
    STD_TORCH_CHECK(
        pair[p].row >= 0 && pair[p].row < rows && pair[p].column >= 0 && pair[p].column < columns,
        "pairs: pair ", p, " is outside the tile");
  }
  Pieces<Pair> pieces;
  torch::stable::parallel_for(0, count, kPairGrain, [&](int64_t begin, int64_t end) {
    std::vector<Pair> wanted;
    multiply_rows(
        x, y, begin, end, [pair](int64_t p) { return pair[p].row; },
        [pair](int64_t p) { return pair[p].column; },
        [&](int64_t p, double product) {
          const int64_t row = pair[p].row, column = pair[p].column;
          if (limits.want(key(row, column, product), row, column)) wanted.push_back(pair[p]);
        });
    pieces.add(begin, std::move(wanted));
  });
  return pieces.joined(pairs);
}

// Lists of candidates with exact distances; offering to one item from one thread at a time.
struct ExactLists {
  int32_t* index;
  double* distance;
  int32_t* counts;
  double* maxima;
  const double* limits;
  int64_t slots, k;

  void offer(int64_t item, int64_t other, double value,
             std::vector<std::pair<double, int32_t>>& room) {
    maxima[item] = value > maxima[item] ? value : maxima[item];
    if (!(value <= limits[item])) return;
    const int32_t count = counts[item]++;
    index[item * slots + count] = static_cast<int32_t>(other);
    distance[item * slots + count] = value;
    if (counts[item] < slots) return;
    room.clear();
    for (int64_t s = item * slots; s < (item + 1) * slots; ++s) {
      room.emplace_back(distance[s], index[s]);
    }
    std::partial_sort(room.begin(), room.begin() + k, room.end());
    for (int64_t s = 0; s < k; ++s) {
      distance[item * slots + s] = room[s].first;
      index[item * slots + s] = room[s].second;
    }
    counts[item] = static_cast<int32_t>(k);
  }
};

void offer_pairs(Tensor index, Tensor distance, Tensor counts, Tensor maxima, const Tensor& pairs,
                 const Tensor& distances, const Tensor& limits, int64_t first_item,
                 int64_t first_other, bool both, int64_t k) {
  const int64_t items = index.size(0), count = pairs.size(0);
  STD_TORCH_CHECK(index.dim() == 2 && pairs.dim() == 2 && pairs.size(1) == 2,
                  "index must be [N, S] and pairs [P, 2]");
  const int64_t slots = index.size(1);
  STD_TORCH_CHECK(k >= 1 && k < slots, "k must be from 1 to one less than the slots of a list");
  check(index, ScalarType::Int, -1, "index");
  check(distance, ScalarType::Double, items * slots, "distance");
  check(counts, ScalarType::Int, items, "counts");
  check(maxima, ScalarType::Double, items, "maxima");
  check(pairs, ScalarType::Int, -1, "pairs");
  check(distances, ScalarType::Double, count, "distances");
  check(limits, ScalarType::Double, items, "limits");
  ExactLists lists{static_cast<int32_t*>(index.mutable_data_ptr()),
                   static_cast<double*>(distance.mutable_data_ptr()),
                   static_cast<int32_t*>(counts.mutable_data_ptr()),
                   static_cast<double*>(maxima.mutable_data_ptr()),
                   detail::pointer<double>(limits),
                   slots,
                   k};
  const auto* pair = static_cast<const Pair*>(pairs.data_ptr());
  const double* value = detail::pointer<double>(distances);
  for (int64_t p = 0; p < count; ++p) {
    const int64_t item = first_item + pair[p].row, other = first_other + pair[p].column;
    STD_TORCH_CHECK(item >= 0 && item < items && other >= 0 && (!both || other < items),
                    "pairs: pair ", p, " is of no item");
  }
  // Every thread looks at all pairs and serves the items of its share.
  torch::stable::parallel_for(0, items, kGrain / 8, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<double, int32_t>> room;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t item = first_item + pair[p].row, other = first_other + pair[p].column;
      if (item >= begin && item < end) lists.offer(item, other, value[p], room);
      if (both && other >= begin && other < end) lists.offer(other, item, value[p], room);
    }
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("open_pairs", TORCH_BOX(&mmga::open_pairs));
  m.impl("narrow_pairs", TORCH_BOX(&mmga::narrow_pairs));
  m.impl("offer_pairs", TORCH_BOX(&mmga::offer_pairs));
}
