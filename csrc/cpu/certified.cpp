// Certified ranks on the CPU: what a tile of approximate keys and a bound on their error settle,
// and float64 products for the pairs that they do not.
//
// count_certain takes a row in segments that stay in the L1 cache, like count_preceding: the lowest
// key that each of 64 items may have is compared with the row's largest threshold first, so that
// most groups cost one look. mmga/ops/reference.py specifies every function.

#include "certified.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
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

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Counters of this many thresholds are kept as vectors; a row with more is searched.
constexpr int64_t kFewMatches = 128;
constexpr int64_t kWidestIntegers = 1 << 24;

using Floats = Vector<float>::type;
constexpr int64_t kLanes = kVectorBytes / sizeof(float);

// A segment of a row: half the width of column j's interval is radius * column_radius[j] +
// slack[j], at most `widest` where the radius is 0.
struct Segment {
  const float* keys;
  float radius;
  const float* column_radius;
  const float* slack;
  float widest;
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
    open[group] = bits_of_masks(undecided);
  }
  for (int64_t k = first_used; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) certain[k] += below[k][lane];
  }
}

// Settles for one threshold what the items of a group do; see count_few_body.
void count_one_by_one(const Segment& s, int64_t group, float low, float high, int64_t& certain,
                      uint64_t& open) {
  for (int64_t j = 0; j < kGroup; ++j) {
    const int64_t column = group * kGroup + j;
    const float width = s.radius * s.column_radius[column] + s.slack[column];
    const bool before = s.keys[column] + width < low;
    certain += before;
    open |= static_cast<uint64_t>(s.keys[column] - width <= high && !before) << j;
  }
}

// The same as count_few_body where no item's interval is wider than the row's widest, and all are
// narrow: two comparisons with what is surely below, or not above, and where they differ for a
// group and a threshold, a look at each item. Keeps a group's keys in registers.
MMGA_INLINE void count_narrow_body(const Segment& s, const float* minima, const float* lower,
                                   const float* upper, int64_t count, int64_t* certain,
                                   uint64_t* open) {
  using M = Vector<float>::mask;
  constexpr int kVectors = kGroup / kLanes;
  // Far more than what a sum of float32 may be off.
  constexpr float kMargin = 0x1p-20F;
  M below[kFewMatches];
  float surely[kFewMatches], maybe[kFewMatches];
  for (int64_t k = 0; k < count; ++k) {
    surely[k] = (lower[k] - s.widest) - kMargin * (std::abs(lower[k]) + s.widest);
    maybe[k] = (upper[k] + s.widest) + kMargin * (std::abs(upper[k]) + s.widest);
  }
  int64_t first_used = count;
  for (int64_t group = 0; group < s.groups; ++group) {
    open[group] = 0;
    const float smallest = minima[group];
    int64_t k = count;
    while (k > 0 && maybe[k - 1] >= smallest) --k;
    if (k == count) continue;
    Floats key[kVectors];
    for (int v = 0; v < kVectors; ++v) load(key[v], s.keys + group * kGroup + v * kLanes);
    while (first_used > k) below[--first_used] = M{};
    for (; k < count; ++k) {
      const Floats low = Floats{} + surely[k];
      const Floats high = Floats{} + maybe[k];
      M settled = M{};
      M possible = M{};
      for (int v = 0; v < kVectors; ++v) {
        settled += key[v] < low;
        possible += key[v] <= high;
      }
      const M differ = settled != possible;
      int32_t some = 0;
      for (int lane = 0; lane < kLanes; ++lane) some |= differ[lane];
      if (some == 0) {
        below[k] -= settled;
      } else {
        count_one_by_one(s, group, lower[k], upper[k], certain[k], open[group]);
      }
    }
  }
  for (int64_t k = first_used; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) certain[k] += below[k][lane];
  }
}

MMGA_VECTOR_CLONES void lowest(const Segment& s, float* minima) { lowest_body(s, minima); }
MMGA_VECTOR_CLONES void count_narrow(const Segment& s, const float* minima, const float* lower,
                                     const float* upper, int64_t count, int64_t* certain,
                                     uint64_t* open) {
  count_narrow_body(s, minima, lower, upper, count, certain, open);
}
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
      : in_(intervals), undecided_(undecided) {
    for (int64_t start = 0; start < in_.tile.width; start += kSegment) {
      const float* slack = in_.column_slack + start;
      const int64_t width = std::min(kSegment, in_.tile.width - start);
      widest_.push_back(*std::max_element(slack, slack + width));
    }
  }

  void count(int64_t row) {
    const int64_t first = in_.tile.match_start[row];
    const int64_t count = in_.tile.match_start[row + 1] - first;
    if (count == 0) return;
    const float* lower = in_.lower + first;
    const float* upper = in_.upper + first;
    for (int64_t start = 0; start < in_.tile.width; start += kSegment) {
      const Segment s = fill(row, start, std::min(kSegment, in_.tile.width - start));
      certain_.assign(count, 0);
      const bool few = count <= kFewMatches, narrow = few && s.radius == 0;
      if (!narrow) lowest(s, minima_);  // where it is narrow, minima of keys serve
      const auto counted = narrow ? count_narrow : few ? count_few : count_many;
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
      minima_[width / kGroup] = group_minimum(keys_ + width / kGroup * kGroup);
    }
    return {keys_, in_.row_radius[row],       radius,
            slack, widest_[start / kSegment], (width + kGroup - 1) / kGroup};
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
  std::vector<float> widest_;  // slack of each segment
  std::vector<int64_t> certain_;
  alignas(64) float keys_[kSegment];
  alignas(64) float radius_[kSegment];
  alignas(64) float slack_[kSegment];
  float minima_[kSegment / kGroup];
  uint64_t open_[kSegment / kGroup];
};

Tensor count_certain(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& row_radius,
                     const Tensor& column_radius, const Tensor& column_slack,
                     const Tensor& match_start, const Tensor& match_item, const Tensor& lower,
                     const Tensor& upper, const Tensor& ignored_start, const Tensor& ignored_item,
                     std::optional<Tensor> row_camera, std::optional<Tensor> column_camera,
                     std::optional<Tensor> removed, Tensor preceding) {
  const Intervals intervals =
      intervals_of(values, row_term, column_term, metric, offset, row_radius, column_radius,
                   column_slack, match_start, match_item, lower, upper, ignored_start, ignored_item,
                   row_camera, column_camera, removed, preceding);
  const int64_t rows = values.size(0), width = values.size(1);
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

// Counts what a pair's key settles; what stays open is put into `open`, if anything.
void settle(const Settlement& s, const Undecided& pair, double product,
            std::vector<Undecided>& open) {
  const double k = s.key(pair.row, pair.column, product);
  const double* of_row = s.match_key + s.match_start[pair.row];
  const double* first = of_row + pair.first;
  const double* last = of_row + pair.last;
  if (s.row_radius != nullptr) {
    const double width = s.row_radius[pair.row] * s.column_radius[pair.column] +
                         (s.row_slack[pair.row] + s.column_slack[pair.column]);
    const double* low = std::lower_bound(first, last, k - width);
    const double* high = std::upper_bound(low, last, k + width);
    for (const double* at = high; at < last; ++at) ++s.preceding[at - s.match_key];
    if (low < high) {
      open.push_back({pair.row, pair.column, static_cast<int32_t>(low - of_row),
                      static_cast<int32_t>(high - of_row)});
    }
    return;
  }
  const double* at = std::lower_bound(first, last, k);
  for (; at < last && *at == k; ++at) {
    ++s.tied[pair.row];
    s.preceding[at - s.match_key] += pair.column + s.offset < s.match_item[at - s.match_key];
  }
  for (; at < last; ++at) ++s.preceding[at - s.match_key];
}

Tensor settle_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                    const Tensor& row_term, const Tensor& column_term, int64_t metric,
                    std::optional<Tensor> row_radius, std::optional<Tensor> column_radius,
                    std::optional<Tensor> row_slack, std::optional<Tensor> column_slack,
                    int64_t offset, const Tensor& match_start, const Tensor& match_item,
                    const Tensor& match_key, Tensor preceding, Tensor tied) {
  const Settlement settlement = settlement_of(
      undecided, x, y, row_term, column_term, metric, row_radius, column_radius, row_slack,
      column_slack, offset, match_start, match_item, match_key, preceding, tied);
  const int64_t rows = x.size(0), columns = y.size(0);
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
    multiply_rows(
        x, y, row_begin(begin), row_begin(end), [pairs](int64_t p) { return pairs[p].row; },
        [pairs](int64_t p) { return pairs[p].column; },
        [&](int64_t p, double product) { settle(settlement, pairs[p], product, open); });
    pieces.add(begin, std::move(open));
  });
  return pieces.joined(undecided);
}

// Numbers below 2^22 plus this have no digits behind the point.
constexpr float kRounder = 0x1.8p23F;
constexpr float kLargest = 32767;

typedef int16_t Shorts __attribute__((vector_size(kLanes * sizeof(int16_t))));

// Writes the integers nearest to a vector times `scale` and adds the squares of what is left.
MMGA_INLINE void round_vector(const float* x, float scale, int16_t* to, Floats& squares) {
  const Floats most = Floats{} + kLargest;
  Floats value;
  load(value, x);
  value *= scale;
  Floats whole = (value + kRounder) - kRounder;
  whole = whole > most ? most : whole;
  whole = whole < -most ? -most : whole;
  const Floats rest = value - whole;
  squares += rest * rest;
  const auto wide = __builtin_convertvector(whole, Vector<float>::mask);
  const Shorts numbers = __builtin_convertvector(wide, Shorts);
  std::memcpy(to, &numbers, sizeof numbers);
}

// The same for a row; returns the squared length of what is left.
MMGA_VECTOR_CLONES double round_row(const float* x, int64_t width, float scale, int16_t* to) {
  Floats squares = Floats{};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) round_vector(x + i, scale, to + i, squares);
  if (whole < width) {
    float rest[kLanes] = {};
    int16_t numbers[kLanes];
    std::copy(x + whole, x + width, rest);
    round_vector(rest, scale, numbers, squares);
    std::copy(numbers, numbers + (width - whole), to + whole);
  }
  double total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += squares[lane];
  return total;
}

std::tuple<Tensor, Tensor> integer_rows(const Tensor& x, const Tensor& norms) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) <= kWidestIntegers, "x must be [N, D], D <= 2^24");
  const int64_t rows = x.size(0), width = x.size(1);
  check(x, ScalarType::Float, -1, "x");
  check(norms, ScalarType::Double, rows, "norms");
  Tensor numbers = torch::stable::new_empty(x, {rows, width}, ScalarType::Short);
  Tensor error = torch::stable::new_empty(x, {rows}, ScalarType::Double);
  const float* from = detail::pointer<float>(x);
  const double* squared = detail::pointer<double>(norms);
  auto* to = static_cast<int16_t*>(numbers.mutable_data_ptr());
  auto* left = static_cast<double*>(error.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double scale = squared[row] > 0 ? 1 / (kIntegerUnit * std::sqrt(squared[row])) : 0;
      left[row] = std::sqrt(
          round_row(from + row * width, width, static_cast<float>(scale), to + row * width));
    }
  });
  return {numbers, error};
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("count_certain", TORCH_BOX(&mmga::count_certain));
  m.impl("settle_pairs", TORCH_BOX(&mmga::settle_pairs));
  m.impl("integer_rows", TORCH_BOX(&mmga::integer_rows));
}
