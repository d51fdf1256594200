// count_preceding on the CPU: how many items of a tile rank before each match of its rows.
//
// A row is taken in segments that fit the L1 cache. Keys are made from inner products there,
// items that are not counted become NaN (which no comparison finds smaller), and groups of 64 keys
// are compared with the row's sorted thresholds: first the group's minimum, which most thresholds
// of a good ranking are below, then every key with the thresholds that are left. Rows with many
// matches search the sorted thresholds instead. Work is compare-bound: two comparisons for each key
// and threshold that the minimum does not decide.

#include "args/ranking.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "cpu/keys.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// With more matches than this, searching sorted thresholds is cheaper than comparing with them: a
// comparison costs a tenth of a nanosecond for each key and match, a search some 20 for each key.
constexpr int64_t kFewMatches = 128;
// Rows of matches below which another thread costs more than it saves.
constexpr int64_t kRowGrain = 64;

// The thresholds of one row, and the counts of one segment.
template <typename T>
struct Thresholds {
  const T* key;  // ascending
  int64_t count;
  int64_t* below;      // keys < threshold, zero on entry
  int64_t* not_above;  // keys <= threshold, zero on entry
};

// Counts `groups` groups of keys, whose minima are known, and returns the smallest key.
template <typename T>
MMGA_VECTOR_CLONES T count_few(const T* keys, const T* minima, int64_t groups,
                               const Thresholds<T>& thresholds) {
  using V = typename Vector<T>::type;
  using M = typename Vector<T>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(T);
  constexpr int kVectors = kGroup / kLanes;
  const int64_t count = thresholds.count;
  const T infinity = std::numeric_limits<T>::infinity();
  M below[kFewMatches];
  M not_above[kFewMatches];
  int64_t first_used = count;  // thresholds before it have met no key
  T nearest = infinity;
  for (int64_t group = 0; group < groups; ++group) {
    const T smallest = minima[group];
    nearest = smallest < nearest ? smallest : nearest;
    int64_t k = count;
    while (k > 0 && thresholds.key[k - 1] >= smallest) --k;
    if (k == count) continue;
    V x[kVectors];
    for (int v = 0; v < kVectors; ++v) load(x[v], keys + group * kGroup + v * kLanes);
    while (first_used > k) {
      --first_used;
      below[first_used] = M{};
      not_above[first_used] = M{};
    }
    for (; k < count; ++k) {
      const V threshold = V{} + thresholds.key[k];
      M less = x[0] < threshold;
      M at_most = x[0] <= threshold;
      for (int v = 1; v < kVectors; ++v) {
        less += x[v] < threshold;
        at_most += x[v] <= threshold;
      }
      below[k] -= less;
      not_above[k] -= at_most;
    }
  }
  for (int64_t k = first_used; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) {
      thresholds.below[k] += below[k][lane];
      thresholds.not_above[k] += not_above[k][lane];
    }
  }
  return nearest;
}

// The same for any number of thresholds, in logarithmic time for each key.
template <typename T>
MMGA_VECTOR_CLONES T count_many(const T* keys, const T* minima, int64_t groups,
                                const Thresholds<T>& thresholds) {
  const int64_t count = thresholds.count;
  const T infinity = std::numeric_limits<T>::infinity();
  const T last = thresholds.key[count - 1];
  T nearest = infinity;
  // below[k] and not_above[k] first collect the keys whose first larger (not smaller) threshold
  // is k; running sums make them counts.
  for (int64_t group = 0; group < groups; ++group) {
    const T* x = keys + group * kGroup;
    const T smallest = minima[group];
    nearest = smallest < nearest ? smallest : nearest;
    if (!(smallest <= last)) continue;
    for (int64_t j = 0; j < kGroup; ++j) {
      const T key = x[j];
      if (!(key <= last)) continue;
      // Lower bound: the first threshold that is not below the key.
      const T* base = thresholds.key;
      int64_t length = count;
      while (length > 1) {
        const int64_t half = length / 2;
        base += (base[half - 1] < key) * half;
        length -= half;
      }
      const int64_t at = base - thresholds.key;
      ++thresholds.not_above[at];
      int64_t above = at;
      if (__builtin_expect(thresholds.key[at] == key, 0)) {
        above = std::upper_bound(thresholds.key + at, thresholds.key + count, key) - thresholds.key;
      }
      if (above < count) ++thresholds.below[above];
    }
  }
  for (int64_t k = 1; k < count; ++k) {
    thresholds.below[k] += thresholds.below[k - 1];
    thresholds.not_above[k] += thresholds.not_above[k - 1];
  }
  return nearest;
}

template <typename T>
class RowCounter {
 public:
  RowCounter(const TileView<T>& tile, const RankCounts<T>& out) : tile_(tile), out_(out) {}

  void count(int64_t row) {
    const int64_t first = out_.match_start[row];
    const int64_t count = out_.match_start[row + 1] - first;
    counts_.resize(2 * count);
    bool bad = false;
    T nearest = out_.nearest[row];
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      const int64_t width = std::min(kSegment, tile_.width - start);
      bad |= fill(row, start, width);
      std::fill(counts_.begin(), counts_.end(), 0);
      const Thresholds<T> thresholds{out_.match_key + first, count, counts_.data(),
                                     counts_.data() + count};
      const int64_t groups = (width + kGroup - 1) / kGroup;
      const T smallest = count <= kFewMatches ? count_few(keys_, minima_, groups, thresholds)
                                              : count_many(keys_, minima_, groups, thresholds);
      nearest = smallest < nearest ? smallest : nearest;
      add(row, start, width, thresholds);
    }
    out_.nearest[row] = bad ? std::numeric_limits<T>::quiet_NaN() : nearest;
  }

 private:
  // Fills keys_ with a segment of a row, NaN where an item is not counted and up to a whole group.
  bool fill(int64_t row, int64_t start, int64_t width) {
    const bool bad = make_segment(tile_, row, start, width, keys_, minima_);
    const int64_t offset = tile_.offset + start;
    for (int64_t m = out_.match_start[row]; m < out_.match_start[row + 1]; ++m) {
      const int64_t column = out_.match_item[m] - offset;
      if (column >= 0 && column < width && keys_[column] != out_.match_key[m])
        ++out_.mismatched[row];
    }
    int64_t stale = -1;  // group whose minimum is not that of its keys any more
    const bool many = exclude_items(tile_, row, start, width, keys_, [&](int64_t column) {
      if (stale >= 0 && stale != column / kGroup) renew(stale);
      stale = column / kGroup;
    });
    const int64_t whole = width / kGroup;
    if (stale >= 0 && stale < whole) renew(stale);
    const T nan = std::numeric_limits<T>::quiet_NaN();
    for (int64_t j = width; j % kGroup != 0; ++j) keys_[j] = nan;
    for (int64_t group = many ? 0 : whole; group * kGroup < width; ++group) renew(group);
    return bad;
  }

  void renew(int64_t group) { minima_[group] = group_minimum(keys_ + group * kGroup); }

  // Adds a segment's counts; equal keys count where the item comes first.
  void add(int64_t row, int64_t start, int64_t width, const Thresholds<T>& thresholds) {
    const int64_t first = out_.match_start[row];
    const int64_t offset = tile_.offset + start;
    for (int64_t k = 0; k < thresholds.count; ++k) {
      int64_t before = thresholds.below[k];
      const int64_t equal = thresholds.not_above[k] - before;
      if (equal != 0) {
        out_.tied[row] += equal;
        const int64_t column = out_.match_item[first + k] - offset;
        if (column >= width) {
          before += equal;
        } else {
          for (int64_t j = 0; j < column; ++j) before += keys_[j] == thresholds.key[k];
        }
      }
      out_.preceding[first + k] += before;
    }
  }

  const TileView<T>& tile_;
  const RankCounts<T>& out_;
  std::vector<int64_t> counts_;
  alignas(64) T keys_[kSegment];
  T minima_[kSegment / kGroup];
};

struct Cpu {
  // Sorts every row's matches by (key, item), after their keys are read from the tile if it has
  // values; NaN goes last.
  template <typename T>
  static void sort_matches(const Tensor&, const TileView<T>& tile, const MatchLists<T>& lists) {
    using Match = std::pair<T, int64_t>;
    const auto before = [](const Match& one, const Match& other) {
      return ranks_before(one.first, one.second, other.first, other.second);
    };
    const bool given = tile.metric == kGiven;
    share_ranges(tile.rows, kRowGrain, [&](int64_t first, int64_t last) {
      std::vector<Match> sorted;
      for (int64_t row = first; row < last; ++row) {
        sorted.clear();
        for (int64_t m = lists.start[row]; m < lists.start[row + 1]; ++m) {
          const int64_t item = lists.item[m];
          T key = lists.key[m];
          if (tile.values != nullptr) {
            make_key<T, T>(tile.metric, given ? T(0) : tile.row_term[row],
                           given ? T(0) : tile.column_term[item],
                           tile.values[row * tile.row_stride + item], key);
          }
          sorted.emplace_back(key, item);
        }
        std::sort(sorted.begin(), sorted.end(), before);
        for (size_t m = 0; m < sorted.size(); ++m) {
          lists.key[lists.start[row] + m] = sorted[m].first;
          lists.item[lists.start[row] + m] = sorted[m].second;
        }
      }
    });
  }

  template <typename T>
  static void count_preceding(const Tensor&, const TileView<T>& tile, const RankCounts<T>& counts) {
    const int64_t grain = rows_per_thread(tile.width);
    share_ranges(tile.rows, grain, [&](int64_t first, int64_t last) {
      RowCounter<T> counter(tile, counts);
      for (int64_t row = first; row < last; ++row) counter.count(row);
    });
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("sort_matches", TORCH_BOX(&mmga::sort_matches<mmga::Cpu>));
  m.impl("read_matches", TORCH_BOX(&mmga::read_matches<mmga::Cpu>));
  m.impl("count_preceding", TORCH_BOX(&mmga::count_preceding<mmga::Cpu>));
}
