// Certified ranks on the CPU: what a tile of approximate keys and a bound on their error settle,
// and float64 products for the pairs that they do not.
//
// open_pairs and offer_pairs do the same for nearest neighbours: list what may be near (or far)
// enough, and keep the nearest by exact distances.
//
// count_certain takes a row in segments that stay in the L1 cache, like count_preceding: the lowest
// key that each of 64 items may have is compared with the row's largest threshold first, so that
// most groups cost one look. mmga/ops/reference.py specifies every function.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "common.h"
#include "keys.h"
#include "products.h"
#include "ranking.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Counters of this many thresholds are kept as vectors; a row with more is searched.
constexpr int64_t kFewMatches = 128;
constexpr int64_t kGrain = 1 << 15;
// Pairs that one thread should have before another is worth waking.
constexpr int64_t kPairGrain = 256;

// A pair that is not settled: whether the item at `column` precedes the matches `first` to `last`
// of its row is open.
struct Undecided {
  int32_t row, column, first, last;
};

// The intervals of the keys of a tile, and the thresholds of its rows, widened by the row's slack.
struct Intervals {
  Tile<float> tile;
  const float* row_radius;
  const float* column_radius;
  const float* column_slack;
  const float* lower;
  const float* upper;
};

// A segment of a row: half the width of column j's interval is radius * column_radius[j] +
// slack[j].
struct Segment {
  const float* keys;
  float radius;
  const float* column_radius;
  const float* slack;
  int64_t groups;
};

// Stores the lowest key that a member of each group may have.
MMGA_INLINE void lowest_body(const Segment& s, float* minima) {
  using V = Vector<float>::type;
  for (int64_t group = 0; group < s.groups; ++group) {
    V low = V{} + std::numeric_limits<float>::infinity();
    for (int64_t j = group * kGroup; j < (group + 1) * kGroup; j += kVectorBytes / sizeof(float)) {
      V key, radius, slack;
      load(key, s.keys + j);
      load(radius, s.column_radius + j);
      load(slack, s.slack + j);
      const V least = key - (s.radius * radius + slack);
      low = least < low ? least : low;
    }
    minima[group] = smallest_lane<float>(low);
  }
}

// Counts into `certain` the items below each of `count` thresholds, and sets a bit for each item of
// which this is open for some threshold.
MMGA_INLINE void count_few_body(const Segment& s, const float* minima, const float* lower,
                                const float* upper, int64_t count, int64_t* certain,
                                uint64_t* open) {
  using V = Vector<float>::type;
  using M = Vector<float>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  constexpr int kVectors = kGroup / kLanes;
  M below[kFewMatches];
  int64_t first_used = count;
  for (int64_t group = 0; group < s.groups; ++group) {
    open[group] = 0;
    const float smallest = minima[group];
    int64_t k = count;
    while (k > 0 && upper[k - 1] >= smallest) --k;
    if (k == count) continue;
    V least[kVectors], most[kVectors];
    M undecided[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = group * kGroup + v * kLanes;
      V key, radius, slack;
      load(key, s.keys + j);
      load(radius, s.column_radius + j);
      load(slack, s.slack + j);
      const V width = s.radius * radius + slack;
      least[v] = key - width;
      most[v] = key + width;
      undecided[v] = M{};
    }
    while (first_used > k) below[--first_used] = M{};
    for (; k < count; ++k) {
      const V low = V{} + lower[k];
      const V high = V{} + upper[k];
      M settled = M{};
      for (int v = 0; v < kVectors; ++v) {
        const M before = most[v] < low;
        settled += before;
        undecided[v] |= (least[v] <= high) & ~before;
      }
      below[k] -= settled;
    }
    M any = undecided[0];
    for (int v = 1; v < kVectors; ++v) any |= undecided[v];
    int32_t some = 0;
    for (int lane = 0; lane < kLanes; ++lane) some |= any[lane];
    if (some == 0) continue;
    uint64_t bits = 0;
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < kLanes; ++lane) {
        bits |= static_cast<uint64_t>(undecided[v][lane] & 1) << (v * kLanes + lane);
      }
    }
    open[group] = bits;
  }
  for (int64_t k = first_used; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) certain[k] += below[k][lane];
  }
}

MMGA_VECTOR_CLONES void lowest(const Segment& s, float* minima) { lowest_body(s, minima); }
MMGA_VECTOR_CLONES void count_few(const Segment& s, const float* minima, const float* lower,
                                  const float* upper, int64_t count, int64_t* certain,
                                  uint64_t* open) {
  count_few_body(s, minima, lower, upper, count, certain, open);
}

// The same for any number of thresholds, in logarithmic time for each key.
void count_many(const Segment& s, const float* minima, const float* lower, const float* upper,
                int64_t count, int64_t* certain, uint64_t* open) {
  for (int64_t group = 0; group < s.groups; ++group) {
    open[group] = 0;
    if (!(minima[group] <= upper[count - 1])) continue;
    for (int64_t j = 0; j < kGroup; ++j) {
      const int64_t column = group * kGroup + j;
      const float key = s.keys[column];
      const float width = s.radius * s.column_radius[column] + s.slack[column];
      const float least = key - width, most = key + width;
      if (!(least <= upper[count - 1])) continue;
      const int64_t first = std::lower_bound(upper, upper + count, least) - upper;
      const int64_t last = std::upper_bound(lower, lower + count, most) - lower;
      if (last < count) ++certain[last];
      if (first < last) open[group] |= uint64_t{1} << j;
    }
  }
  for (int64_t k = 1; k < count; ++k) certain[k] += certain[k - 1];
}

class RowOfIntervals {
 public:
  RowOfIntervals(const Intervals& intervals, std::vector<Undecided>& undecided)
      : in_(intervals), undecided_(undecided) {}

  void count(int64_t row) {
    const int64_t first = in_.tile.match_start[row];
    const int64_t count = in_.tile.match_start[row + 1] - first;
    if (count == 0) return;
    const float* lower = in_.lower + first;
    const float* upper = in_.upper + first;
    for (int64_t start = 0; start < in_.tile.width; start += kSegment) {
      const Segment s = fill(row, start, std::min(kSegment, in_.tile.width - start));
      lowest(s, minima_);
      certain_.assign(count, 0);
      const auto counted = count <= kFewMatches ? count_few : count_many;
      counted(s, minima_, lower, upper, count, certain_.data(), open_);
      for (int64_t k = 0; k < count; ++k) in_.tile.preceding[first + k] += certain_[k];
      for (int64_t group = 0; group < s.groups; ++group) {
        for (uint64_t bits = open_[group]; bits != 0; bits &= bits - 1) {
          list(s, row, start, group * kGroup + __builtin_ctzll(bits), lower, upper, count);
        }
      }
    }
  }

 private:
  Segment fill(int64_t row, int64_t start, int64_t width) {
    const Tile<float>& tile = in_.tile;
    const bool given = tile.metric == kGiven;
    make_keys(tile.values + row * tile.row_stride + start, width, tile.metric,
              given ? 0.0F : tile.row_term[row], given ? nullptr : tile.column_term + start, keys_,
              minima_);
    leave_out(tile, row, start, width, keys_, [](int64_t) {});
    const float* radius = in_.column_radius + start;
    const float* slack = in_.column_slack + start;
    if (width % kGroup != 0) {  // a whole number of groups, none of whose rest is counted
      const int64_t end = (width + kGroup - 1) / kGroup * kGroup;
      std::fill(keys_ + width, keys_ + end, std::numeric_limits<float>::quiet_NaN());
      std::copy(radius, radius + width, radius_);
      std::copy(slack, slack + width, slack_);
      std::fill(radius_ + width, radius_ + end, 0.0F);
      std::fill(slack_ + width, slack_ + end, 0.0F);
      radius = radius_;
      slack = slack_;
    }
    return {keys_, in_.row_radius[row], radius, slack, (width + kGroup - 1) / kGroup};
  }

  void list(const Segment& s, int64_t row, int64_t start, int64_t column, const float* lower,
            const float* upper, int64_t count) {
    const float width = s.radius * s.column_radius[column] + s.slack[column];
    const int64_t first = std::lower_bound(upper, upper + count, s.keys[column] - width) - upper;
    const int64_t last = std::upper_bound(lower, lower + count, s.keys[column] + width) - lower;
    undecided_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(start + column),
                          static_cast<int32_t>(first), static_cast<int32_t>(last)});
  }

  const Intervals& in_;
  std::vector<Undecided>& undecided_;
  std::vector<int64_t> certain_;
  alignas(64) float keys_[kSegment];
  alignas(64) float radius_[kSegment];
  alignas(64) float slack_[kSegment];
  float minima_[kSegment / kGroup];
  uint64_t open_[kSegment / kGroup];
};

// What threads found, in the order of what they were given.
template <typename Found>
class Pieces {
 public:
  void add(int64_t begin, std::vector<Found>&& found) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pieces_.emplace_back(begin, std::move(found));
  }

  Tensor joined(const Tensor& like) {
    std::sort(pieces_.begin(), pieces_.end(),
              [](const auto& one, const auto& other) { return one.first < other.first; });
    int64_t count = 0;
    for (const auto& piece : pieces_) count += piece.second.size();
    constexpr int64_t kNumbers = sizeof(Found) / sizeof(int32_t);
    Tensor result = torch::stable::new_empty(like, {count, kNumbers}, ScalarType::Int);
    auto* to = static_cast<Found*>(result.mutable_data_ptr());
    for (const auto& piece : pieces_) {
      to = std::copy(piece.second.begin(), piece.second.end(), to);
    }
    return result;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<int64_t, std::vector<Found>>> pieces_;
};

void check(const Tensor& tensor, ScalarType type, int64_t length, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(length < 0 || tensor.numel() == length, name, " must have ", length, " values");
}

Tensor count_certain(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& row_radius,
                     const Tensor& column_radius, const Tensor& column_slack,
                     const Tensor& match_start, const Tensor& match_item, const Tensor& lower,
                     const Tensor& upper, const Tensor& ignored_start, const Tensor& ignored_item,
                     std::optional<Tensor> row_camera, std::optional<Tensor> column_camera,
                     std::optional<Tensor> removed, Tensor preceding) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 2 &&
                      (values.stride(1) == 1 || values.size(1) == 1),
                  "values must be float32 [R, W] with contiguous rows");
  STD_TORCH_CHECK(metric >= kGiven && metric <= kEuclidean, "metric must be 0, 1 or 2");
  const int64_t rows = values.size(0), width = values.size(1), matches = match_item.numel();
  if (metric != kGiven) {
    check(row_term, ScalarType::Float, rows, "row_term");
    check(column_term, ScalarType::Float, width, "column_term");
  }
  check(row_radius, ScalarType::Float, rows, "row_radius");
  check(column_radius, ScalarType::Float, width, "column_radius");
  check(column_slack, ScalarType::Float, width, "column_slack");
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, matches, "match_item");
  check(lower, ScalarType::Float, matches, "lower");
  check(upper, ScalarType::Float, matches, "upper");
  check(ignored_start, ScalarType::Long, rows + 1, "ignored_start");
  check(ignored_item, ScalarType::Long, -1, "ignored_item");
  check(preceding, ScalarType::Long, matches, "preceding");
  STD_TORCH_CHECK(row_camera.has_value() == column_camera.has_value(),
                  "row_camera and column_camera come together");
  if (row_camera.has_value()) {
    check(*row_camera, ScalarType::Int, rows, "row_camera");
    check(*column_camera, ScalarType::Int, width, "column_camera");
  }
  if (removed.has_value()) {
    STD_TORCH_CHECK(removed->scalar_type() == ScalarType::Bool && removed->dim() == 2 &&
                        removed->size(0) == rows && removed->size(1) == width &&
                        (removed->stride(1) == 1 || width == 1),
                    "removed must be bool [R, W] with contiguous rows");
  }
  Tile<float> tile{};
  tile.values = detail::pointer<float>(values);
  tile.row_stride = values.stride(0);
  tile.rows = rows;
  tile.width = width;
  tile.row_term = detail::pointer<float>(row_term);
  tile.column_term = detail::pointer<float>(column_term);
  tile.metric = metric;
  tile.offset = offset;
  tile.match_start = detail::pointer<int64_t>(match_start);
  tile.match_item = detail::pointer<int64_t>(match_item);
  tile.ignored_start = detail::pointer<int64_t>(ignored_start);
  tile.ignored_item = detail::pointer<int64_t>(ignored_item);
  tile.row_camera = detail::pointer<int32_t>(row_camera);
  tile.column_camera = detail::pointer<int32_t>(column_camera);
  tile.removed = detail::pointer<bool>(removed);
  tile.removed_stride = removed.has_value() ? removed->stride(0) : 0;
  tile.preceding = static_cast<int64_t*>(preceding.mutable_data_ptr());
  const Intervals intervals{tile,
                            detail::pointer<float>(row_radius),
                            detail::pointer<float>(column_radius),
                            detail::pointer<float>(column_slack),
                            detail::pointer<float>(lower),
                            detail::pointer<float>(upper)};
  Pieces<Undecided> pieces;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<Undecided> found;
    RowOfIntervals row_of(intervals, found);
    for (int64_t row = begin; row < end; ++row) row_of.count(row);
    pieces.add(begin, std::move(found));
  });
  return pieces.joined(values);
}

// What settle_pairs is given; see reference.py.
struct Settlement {
  const float* x;
  const float* y;
  int64_t width;
  const double* row_term;
  const double* column_term;
  int64_t metric;
  const double* row_radius;  // null: the products are exact
  const double* column_radius;
  const double* row_slack;
  const double* column_slack;
  int64_t offset;
  const int64_t* match_start;
  const int64_t* match_item;
  const double* match_key;
  int64_t* preceding;
  int64_t* tied;

  double key(const Undecided& pair, double product) const {
    const double row = row_term[pair.row], column = column_term[pair.column];
    if (metric == kEuclidean) {
      const double key = (row + column) - 2 * product;
      return key < 0 ? 0 : key;
    }
    const double norms = row * column;
    return norms > 0 ? 1 - product / norms : 1;
  }

  // Counts what the pair's key settles; what stays open is put into `open`, if anything.
  void settle(const Undecided& pair, double product, std::vector<Undecided>& open) const {
    const double k = key(pair, product);
    const int64_t start = match_start[pair.row];
    const double* first = match_key + start + pair.first;
    const double* last = match_key + start + pair.last;
    if (row_radius != nullptr) {
      const double width = row_radius[pair.row] * column_radius[pair.column] +
                           (row_slack[pair.row] + column_slack[pair.column]);
      const double* low = std::lower_bound(first, last, k - width);
      const double* high = std::upper_bound(low, last, k + width);
      for (const double* at = high; at < last; ++at) ++preceding[at - match_key];
      if (low < high) {
        open.push_back({pair.row, pair.column, static_cast<int32_t>(low - (match_key + start)),
                        static_cast<int32_t>(high - (match_key + start))});
      }
      return;
    }
    const double* at = std::lower_bound(first, last, k);
    for (; at < last && *at == k; ++at) {
      ++tied[pair.row];
      preceding[at - match_key] += pair.column + offset < match_item[at - match_key];
    }
    for (; at < last; ++at) ++preceding[at - match_key];
  }
};

Tensor settle_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                    const Tensor& row_term, const Tensor& column_term, int64_t metric,
                    std::optional<Tensor> row_radius, std::optional<Tensor> column_radius,
                    std::optional<Tensor> row_slack, std::optional<Tensor> column_slack,
                    int64_t offset, const Tensor& match_start, const Tensor& match_item,
                    const Tensor& match_key, Tensor preceding, Tensor tied) {
  const int64_t rows = x.size(0), columns = y.size(0), matches = match_item.numel();
  STD_TORCH_CHECK(metric == kCosine || metric == kEuclidean, "metric must be 1 or 2");
  STD_TORCH_CHECK(undecided.dim() == 2 && undecided.size(1) == 4, "undecided must be [P, 4]");
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
                  "x and y must be [R, K] and [W, K]");
  check(undecided, ScalarType::Int, -1, "undecided");
  check(x, ScalarType::Float, -1, "x");
  check(y, ScalarType::Float, -1, "y");
  check(row_term, ScalarType::Double, rows, "row_term");
  check(column_term, ScalarType::Double, columns, "column_term");
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, matches, "match_item");
  check(match_key, ScalarType::Double, matches, "match_key");
  check(preceding, ScalarType::Long, matches, "preceding");
  check(tied, ScalarType::Long, rows, "tied");
  const bool bounded = row_radius.has_value();
  STD_TORCH_CHECK(column_radius.has_value() == bounded && row_slack.has_value() == bounded &&
                      column_slack.has_value() == bounded,
                  "radii and slacks come together");
  if (bounded) {
    check(*row_radius, ScalarType::Double, rows, "row_radius");
    check(*row_slack, ScalarType::Double, rows, "row_slack");
    check(*column_radius, ScalarType::Double, columns, "column_radius");
    check(*column_slack, ScalarType::Double, columns, "column_slack");
  }
  using detail::pointer;
  const Settlement settlement{pointer<float>(x),
                              pointer<float>(y),
                              x.size(1),
                              pointer<double>(row_term),
                              pointer<double>(column_term),
                              metric,
                              pointer<double>(row_radius),
                              pointer<double>(column_radius),
                              pointer<double>(row_slack),
                              pointer<double>(column_slack),
                              offset,
                              pointer<int64_t>(match_start),
                              pointer<int64_t>(match_item),
                              pointer<double>(match_key),
                              static_cast<int64_t*>(preceding.mutable_data_ptr()),
                              static_cast<int64_t*>(tied.mutable_data_ptr())};
  const auto* pairs = static_cast<const Undecided*>(undecided.data_ptr());
  const int64_t count = undecided.size(0);
  for (int64_t p = 0; p < count; ++p) {
    const Undecided& pair = pairs[p];
    STD_TORCH_CHECK(
        pair.row >= 0 && pair.row < rows && pair.column >= 0 && pair.column < columns &&
            pair.first >= 0 && pair.first <= pair.last &&
            pair.last <= settlement.match_start[pair.row + 1] - settlement.match_start[pair.row] &&
            (p == 0 || pairs[p - 1].row <= pair.row),
        "undecided: pair ", p, " is outside the tile, or rows do not ascend");
  }
  // A row's counts belong to one thread: pieces begin where rows do.
  const auto row_begin = [&](int64_t p) {
    while (p > 0 && p < count && pairs[p].row == pairs[p - 1].row) ++p;
    return p;
  };
  Pieces<Undecided> pieces;
  torch::stable::parallel_for(0, count, kPairGrain, [&](int64_t begin, int64_t end) {
    std::vector<Undecided> open;
    WideRow wide(settlement.width);
    end = row_begin(end);
    for (int64_t p = row_begin(begin); p < end;) {
      const Undecided& pair = pairs[p];
      wide.set(settlement.x + pair.row * settlement.width);
      const float* others[kProducts];
      int64_t several = 0;
      for (; several < kProducts && p + several < end && pairs[p + several].row == pair.row;
           ++several) {
        others[several] = settlement.y + pairs[p + several].column * settlement.width;
      }
      double products[kProducts];
      wide.multiply(others, several, products);
      for (int64_t s = 0; s < several; ++s) settlement.settle(pairs[p + s], products[s], open);
      p += several;
    }
    pieces.add(begin, std::move(open));
  });
  return pieces.joined(undecided);
}

// What open_pairs is given; see reference.py.
struct Openings {
  const float* values;
  int64_t row_stride, width, metric;
  const float* row_term;
  const float* column_term;
  const float* row_radius;
  const float* column_radius;
  const float* row_slack;
  const float* column_slack;
  const float* near_row;
  const float* near_column;
  const float* far_row;
  const float* far_column;
};

// Sets a bit for each of a group's pairs that is wanted: bit v * kLanes + lane.
MMGA_INLINE uint64_t wanted_body(const Openings& in, const float* keys, int64_t row,
                                 int64_t column) {
  using V = Vector<float>::type;
  using M = Vector<float>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  constexpr int kVectors = kGroup / kLanes;
  const V near_row = V{} + in.near_row[row];
  const V far_row = V{} + in.far_row[row];
  const float row_slack = in.row_slack[row];
  M wanted[kVectors];
  M any = M{};
  for (int v = 0; v < kVectors; ++v) {
    V key, radius, slack, near, far;
    load(key, keys + v * kLanes);
    load(radius, in.column_radius + column + v * kLanes);
    load(slack, in.column_slack + column + v * kLanes);
    load(near, in.near_column + column + v * kLanes);
    load(far, in.far_column + column + v * kLanes);
    near = near > near_row ? near : near_row;
    far = far < far_row ? far : far_row;
    const V width = in.row_radius[row] * radius + (row_slack + slack);
    wanted[v] = (key - width <= near) | (key + width >= far);
    any |= wanted[v];
  }
  int32_t some = 0;
  for (int lane = 0; lane < kLanes; ++lane) some |= any[lane];
  if (some == 0) return 0;
  uint64_t bits = 0;
  for (int v = 0; v < kVectors; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) {
      bits |= static_cast<uint64_t>(wanted[v][lane] & 1) << (v * kLanes + lane);
    }
  }
  return bits;
}

MMGA_VECTOR_CLONES void find_wanted(const Openings& in, const float* keys, int64_t row,
                                    int64_t start, int64_t groups, uint64_t* bits) {
  for (int64_t group = 0; group < groups; ++group) {
    bits[group] = wanted_body(in, keys + group * kGroup, row, start + group * kGroup);
  }
}

// One by one, for the rest of a row that is no whole group.
bool is_wanted(const Openings& in, float key, int64_t row, int64_t column) {
  const float width =
      in.row_radius[row] * in.column_radius[column] + (in.row_slack[row] + in.column_slack[column]);
  return key - width <= std::max(in.near_row[row], in.near_column[column]) ||
         key + width >= std::min(in.far_row[row], in.far_column[column]);
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
        if (is_wanted(in_, keys_[j], row, start + j)) add(row, start + j, from);
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
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 2 &&
                      (values.stride(1) == 1 || values.size(1) == 1),
                  "values must be float32 [R, W] with contiguous rows");
  STD_TORCH_CHECK(metric >= kGiven && metric <= kEuclidean, "metric must be 0, 1 or 2");
  const int64_t rows = values.size(0), width = values.size(1);
  if (metric != kGiven) {
    check(row_term, ScalarType::Float, rows, "row_term");
    check(column_term, ScalarType::Float, width, "column_term");
  }
  check(row_radius, ScalarType::Float, rows, "row_radius");
  check(column_radius, ScalarType::Float, width, "column_radius");
  check(row_slack, ScalarType::Float, rows, "row_slack");
  check(column_slack, ScalarType::Float, width, "column_slack");
  check(near_row, ScalarType::Float, rows, "near_row");
  check(near_column, ScalarType::Float, width, "near_column");
  check(far_row, ScalarType::Float, rows, "far_row");
  check(far_column, ScalarType::Float, width, "far_column");
  using detail::pointer;
  const Openings openings{pointer<float>(values),
                          values.stride(0),
                          width,
                          metric,
                          pointer<float>(row_term),
                          pointer<float>(column_term),
                          pointer<float>(row_radius),
                          pointer<float>(column_radius),
                          pointer<float>(row_slack),
                          pointer<float>(column_slack),
                          pointer<float>(near_row),
                          pointer<float>(near_column),
                          pointer<float>(far_row),
                          pointer<float>(far_column)};
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
  m.impl("count_certain", TORCH_BOX(&mmga::count_certain));
  m.impl("settle_pairs", TORCH_BOX(&mmga::settle_pairs));
  m.impl("open_pairs", TORCH_BOX(&mmga::open_pairs));
  m.impl("offer_pairs", TORCH_BOX(&mmga::offer_pairs));
}
