// Certified ranks on the CPU: pairs whose order a tile of approximate keys and a bound on their
// error decide, and float64 sums for the others.
//
// count_certain takes a row in segments that fit the L1 cache, like count_preceding: the lowest key
// that each of 64 items may have is compared with the row's largest threshold first, so that most
// groups cost one comparison. mmga/ops/reference specifies every function.

#include "args/certified.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "cpu/keys.h"
#include "cpu/pairs.h"

namespace mmga {
namespace {

// Thresholds whose counters are vectors; those of a row with more are searched.
constexpr int64_t kFewMatches = 128;

using Floats = Vector<float>::type;
using Masks = Vector<float>::mask;
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
MMGA_VECTOR_CLONES void lowest(const Segment& s, float* minima) {
  for (int64_t group = 0; group < s.groups; ++group) {
    Floats low = Floats{} + std::numeric_limits<float>::infinity();
    for (int64_t j = group * kGroup; j < (group + 1) * kGroup; j += kLanes) {
      Floats key, radius, slack;
      load(key, s.keys + j);
      load(radius, s.column_radius + j);
      load(slack, s.slack + j);
      const Floats least = key - (s.radius * radius + slack);
      low = least < low ? least : low;
    }
    minima[group] = smallest_lane<float>(low);
  }
}

// Counts for one threshold the items of a group; see count_few.
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

// Counts into `certain` the items below each of `count` thresholds, and sets a bit for each item of
// which this is open for some threshold. `kNarrow`: no item's interval is wider than the row's
// widest, and all are narrow. Keys are then compared with what is surely below, or not above, and
// only where these differ for a group and a threshold, item by item: keys fit the registers.
template <bool kNarrow>
MMGA_VECTOR_CLONES void count_few(const Segment& s, const float* minima, const float* lower,
                                  const float* upper, int64_t count, int64_t* certain,
                                  uint64_t* open) {
  constexpr int kVectors = kGroup / kLanes;
  constexpr float kMargin = 0x1p-20F;  // far more than the rounding of a sum of float32
  Masks below[kFewMatches];
  float surely[kFewMatches], maybe[kFewMatches];
  for (int64_t k = 0; kNarrow && k < count; ++k) {
    surely[k] = (lower[k] - s.widest) - kMargin * (std::abs(lower[k]) + s.widest);
    maybe[k] = (upper[k] + s.widest) + kMargin * (std::abs(upper[k]) + s.widest);
  }
  const float* lows = kNarrow ? surely : lower;
  const float* highs = kNarrow ? maybe : upper;
  int64_t first_used = count;
  for (int64_t group = 0; group < s.groups; ++group) {
    open[group] = 0;
    const float smallest = minima[group];
    int64_t k = count;
    while (k > 0 && highs[k - 1] >= smallest) --k;
    if (k == count) continue;
    Floats least[kVectors], most[kVectors];
    Masks undecided[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = group * kGroup + v * kLanes;
      load(least[v], s.keys + j);
      if (kNarrow) continue;
      const Floats key = least[v];
      Floats radius, slack;
      load(radius, s.column_radius + j);
      load(slack, s.slack + j);
      const Floats width = s.radius * radius + slack;
      least[v] = key - width;
      most[v] = key + width;
      undecided[v] = Masks{};
    }
    while (first_used > k) below[--first_used] = Masks{};
    for (; k < count; ++k) {
      const Floats low = Floats{} + lows[k];
      const Floats high = Floats{} + highs[k];
      Masks certainly = {}, possible = {};
      for (int v = 0; v < kVectors; ++v) {
        const Masks before = (kNarrow ? least[v] : most[v]) < low;
        certainly += before;
        if (kNarrow) {
          possible += least[v] <= high;
        } else {
          undecided[v] |= (least[v] <= high) & ~before;
        }
      }
      if (!kNarrow || !any_lane(certainly != possible)) {
        below[k] -= certainly;
      } else {
        count_one_by_one(s, group, lower[k], upper[k], certain[k], open[group]);
      }
    }
    if (kNarrow) continue;
    Masks any = undecided[0];
    for (int v = 1; v < kVectors; ++v) any |= undecided[v];
    if (any_lane(any)) open[group] = bits_of_masks(undecided);
  }
  for (int64_t k = first_used; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) certain[k] += below[k][lane];
  }
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

class CertainCounter {
 public:
  CertainCounter(const TileView<float>& tile, const Intervals& intervals,
                 std::vector<Undecided>& undecided)
      : tile_(tile), in_(intervals), undecided_(undecided) {
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      const float* slack = in_.column_slack + start;
      widest_.push_back(*std::max_element(slack, slack + std::min(kSegment, tile_.width - start)));
    }
  }

  void count(int64_t row) {
    const int64_t first = in_.match_start[row];
    const int64_t count = in_.match_start[row + 1] - first;
    if (count == 0) return;
    const float* lower = in_.lower + first;
    const float* upper = in_.upper + first;
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      const Segment s = fill(row, start, std::min(kSegment, tile_.width - start));
      certain_.assign(count, 0);
      const bool few = count <= kFewMatches, narrow = few && s.radius == 0;
      if (!narrow) lowest(s, minima_);  // where it is narrow, the minima of keys will do
      const auto counted = narrow ? count_few<true> : few ? count_few<false> : count_many;
      counted(s, minima_, lower, upper, count, certain_.data(), open_);
      for (int64_t k = 0; k < count; ++k) in_.preceding[first + k] += certain_[k];
      for (int64_t group = 0; group < s.groups; ++group) {
        for (uint64_t bits = open_[group]; bits != 0; bits &= bits - 1) {
          list(s, row, start, group * kGroup + __builtin_ctzll(bits), lower, upper, count);
        }
      }
    }
  }

 private:
  Segment fill(int64_t row, int64_t start, int64_t width) {
    make_segment(tile_, row, start, width, keys_, minima_);
    exclude_items(tile_, row, start, width, keys_, [](int64_t) {});
    const float* radius = in_.column_radius + start;
    const float* slack = in_.column_slack + start;
    if (width % kGroup != 0) {  // a whole number of groups, whose last items are not counted
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

  const TileView<float>& tile_;
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

// Counts the matches that a pair's key decides, and appends the others to `open`.
void settle(const Settlement& s, const Undecided& pair, double sum, std::vector<Undecided>& open) {
  const double k = s.key(pair.row, pair.column, sum);
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

struct Cpu {
  static Tensor count_certain(const Tensor& like, const TileView<float>& tile,
                              const Intervals& intervals) {
    OrderedChunks<Undecided> chunks;
    chunks.fill(tile.rows, rows_per_thread(tile.width),
                [&](int64_t begin, int64_t end, std::vector<Undecided>& found) {
                  CertainCounter counter(tile, intervals, found);
                  for (int64_t row = begin; row < end; ++row) counter.count(row);
                });
    return chunks.joined(like);
  }

  static Tensor refine_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                             const Settlement& settlement) {
    const auto* pairs = static_cast<const Undecided*>(undecided.const_data_ptr());
    const int64_t count = undecided.size(0);
    // A row's counts belong to one thread: chunks begin where rows do.
    const auto row_begin = [&](int64_t p) {
      while (p > 0 && p < count && pairs[p].row == pairs[p - 1].row) ++p;
      return p;
    };
    OrderedChunks<Undecided> chunks;
    chunks.fill(count, kPairGrain, [&](int64_t begin, int64_t end, std::vector<Undecided>& open) {
      sum_rows(x, y, settlement.key.metric, pairs, row_begin(begin), row_begin(end),
               [&](int64_t p, double sum) { settle(settlement, pairs[p], sum, open); });
    });
    return chunks.joined(undecided);
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("count_certain", TORCH_BOX(&mmga::count_certain<mmga::Cpu>));
  m.impl("refine_pairs", TORCH_BOX(&mmga::refine_pairs<mmga::Cpu>));
}
