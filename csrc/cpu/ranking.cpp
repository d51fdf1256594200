// count_preceding on the CPU: how many items of a tile rank before each match of its rows.
//
// A row is taken in segments that stay in the L1 cache. Keys are made from inner products there,
// items that are not counted become NaN (which no comparison finds smaller), and groups of 64 keys
// are compared with the row's sorted thresholds: first the group's minimum, which most thresholds
// of a good ranking are below, then every key with the thresholds that are left. Rows with many
// matches search the sorted thresholds instead. Work is compare-bound: two comparisons for each key
// and threshold that the minimum does not settle.

#include "ranking.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "common.h"
#include "keys.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// With more matches than this, searching sorted thresholds is cheaper than comparing with them: a
// comparison costs a tenth of a nanosecond for each key and match, a search some 20 for each key.
constexpr int64_t kFewMatches = 128;
// Keys that one thread should have before another is worth waking.
constexpr int64_t kGrain = 1 << 15;
// Rows whose matches one thread should have to read and sort.
constexpr int64_t kRowGrain = 64;

// What one row counts its keys against, and the counts of one segment.
template <typename T>
struct Thresholds {
  const T* key;  // ascending
  int64_t count;
  int64_t* below;      // keys < threshold, zero on entry
  int64_t* not_above;  // keys <= threshold, zero on entry
};

// Counts `groups` groups of keys, whose minima are known, and returns the smallest key.
template <typename T>
MMGA_INLINE T count_few_body(const T* keys, const T* minima, int64_t groups,
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
MMGA_INLINE T count_many_body(const T* keys, const T* minima, int64_t groups,
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

// A template cannot be compiled for several instruction sets, an overload can.
#define MMGA_RANKING_KERNELS(T)                                                   \
  MMGA_VECTOR_CLONES T count_few(const T* keys, const T* minima, int64_t groups,  \
                                 const Thresholds<T>& thresholds) {               \
    return count_few_body<T>(keys, minima, groups, thresholds);                   \
  }                                                                               \
  MMGA_VECTOR_CLONES T count_many(const T* keys, const T* minima, int64_t groups, \
                                  const Thresholds<T>& thresholds) {              \
    return count_many_body<T>(keys, minima, groups, thresholds);                  \
  }
MMGA_RANKING_KERNELS(float)
MMGA_RANKING_KERNELS(double)
#undef MMGA_RANKING_KERNELS

template <typename T>
class RowCounter {
 public:
  explicit RowCounter(const Tile<T>& tile) : tile_(tile) {}

  void count(int64_t row) {
    const int64_t first = tile_.match_start[row];
    const int64_t count = tile_.match_start[row + 1] - first;
    counts_.resize(2 * count);
    bool bad = false;
    T nearest = tile_.nearest[row];
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      const int64_t width = std::min(kSegment, tile_.width - start);
      bad |= fill(row, start, width);
      std::fill(counts_.begin(), counts_.end(), 0);
      const Thresholds<T> thresholds{tile_.match_key + first, count, counts_.data(),
                                     counts_.data() + count};
      const int64_t groups = (width + kGroup - 1) / kGroup;
      const T smallest = count <= kFewMatches ? count_few(keys_, minima_, groups, thresholds)
                                              : count_many(keys_, minima_, groups, thresholds);
      nearest = smallest < nearest ? smallest : nearest;
      settle(row, start, width, thresholds);
    }
    tile_.nearest[row] = bad ? std::numeric_limits<T>::quiet_NaN() : nearest;
  }

 private:
  // Fills keys_ with a segment of a row, NaN where an item is not counted and up to a whole group.
  bool fill(int64_t row, int64_t start, int64_t width) {
    const T* values = tile_.values + row * tile_.row_stride + start;
    const bool given = tile_.metric == kGiven;
    const bool bad = make_keys(values, width, tile_.metric, given ? T(0) : tile_.row_term[row],
                               given ? nullptr : tile_.column_term + start, keys_, minima_);
    const int64_t offset = tile_.offset + start;
    for (int64_t m = tile_.match_start[row]; m < tile_.match_start[row + 1]; ++m) {
      const int64_t column = tile_.match_item[m] - offset;
      if (column >= 0 && column < width && keys_[column] != tile_.match_key[m]) {
        ++tile_.moved[row];
      }
    }
    int64_t stale = -1;  // group whose minimum has yet to be taken again
    const bool many = leave_out(tile_, row, start, width, keys_, [&](int64_t column) {
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
  void settle(int64_t row, int64_t start, int64_t width, const Thresholds<T>& thresholds) {
    const int64_t first = tile_.match_start[row];
    const int64_t offset = tile_.offset + start;
    for (int64_t k = 0; k < thresholds.count; ++k) {
      int64_t before = thresholds.below[k];
      const int64_t equal = thresholds.not_above[k] - before;
      if (equal != 0) {
        tile_.tied[row] += equal;
        const int64_t column = tile_.match_item[first + k] - offset;
        if (column >= width) {
          before += equal;
        } else {
          for (int64_t j = 0; j < column; ++j) before += keys_[j] == thresholds.key[k];
        }
      }
      tile_.preceding[first + k] += before;
    }
  }

  const Tile<T>& tile_;
  std::vector<int64_t> counts_;
  alignas(64) T keys_[kSegment];
  T minima_[kSegment / kGroup];
};

template <typename T>
void count_tile(const Tile<T>& tile) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tile.width));
  torch::stable::parallel_for(0, tile.rows, grain, [&](int64_t first, int64_t last) {
    RowCounter<T> counter(tile);
    for (int64_t row = first; row < last; ++row) counter.count(row);
  });
}

// Sorts every row's matches by (key, item), after `read(row, item, key)` has set the keys; NaN goes
// last.
template <typename T, typename Read>
void sort_rows(int64_t rows, const int64_t* match_start, int64_t* match_item, T* match_key,
               const Read& read) {
  using Match = std::pair<T, int64_t>;
  const auto before = [](const Match& one, const Match& other) {
    const bool one_is_nan = one.first != one.first;
    const bool other_is_nan = other.first != other.first;
    if (one_is_nan || other_is_nan) {
      return one_is_nan == other_is_nan ? one.second < other.second : other_is_nan;
    }
    return one < other;
  };
  torch::stable::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
    std::vector<Match> mine;
    for (int64_t row = first; row < last; ++row) {
      mine.clear();
      for (int64_t m = match_start[row]; m < match_start[row + 1]; ++m) {
        read(row, match_item[m], match_key[m]);
        mine.emplace_back(match_key[m], match_item[m]);
      }
      std::sort(mine.begin(), mine.end(), before);
      for (size_t m = 0; m < mine.size(); ++m) {
        match_key[match_start[row] + m] = mine[m].first;
        match_item[match_start[row] + m] = mine[m].second;
      }
    }
  });
}

template <typename T>
void read_rows(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
               int64_t metric, const int64_t* match_start, int64_t* match_item, T* match_key) {
  const T* tile = static_cast<const T*>(values.data_ptr());
  const int64_t stride = values.stride(0);
  const T* row_terms = static_cast<const T*>(row_term.data_ptr());
  const T* column_terms = static_cast<const T*>(column_term.data_ptr());
  const bool given = metric == kGiven;
  sort_rows(values.size(0), match_start, match_item, match_key,
            [&](int64_t row, int64_t item, T& key) {
              make_key<T, T>(metric, given ? T(0) : row_terms[row],
                             given ? T(0) : column_terms[item], tile[row * stride + item], key);
            });
}

// Checks lists of matches, whose lengths fit `rows` rows.
void check_matches(const Tensor& match_start, const Tensor& match_item, const Tensor& match_key,
                   int64_t rows) {
  check(match_start, ScalarType::Long, rows + 1, "match_start");
  check(match_item, ScalarType::Long, -1, "match_item");
  check(match_key, match_key.scalar_type(), match_item.numel(), "match_key");
}

void sort_matches(const Tensor& match_start, Tensor match_item, Tensor match_key) {
  const int64_t rows = match_start.numel() - 1;
  check_matches(match_start, match_item, match_key, rows);
  const int64_t* start = static_cast<const int64_t*>(match_start.data_ptr());
  int64_t* item = static_cast<int64_t*>(match_item.mutable_data_ptr());
  const auto as_they_are = [](int64_t, int64_t, auto&) {};
  if (match_key.scalar_type() == ScalarType::Float) {
    sort_rows(rows, start, item, static_cast<float*>(match_key.mutable_data_ptr()), as_they_are);
  } else {
    check(match_key, ScalarType::Double, -1, "match_key");
    sort_rows(rows, start, item, static_cast<double*>(match_key.mutable_data_ptr()), as_they_are);
  }
}

void read_matches(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                  int64_t metric, const Tensor& match_start, Tensor match_item, Tensor match_key) {
  const ScalarType type = check_tile(values, row_term, column_term, metric);
  check_matches(match_start, match_item, match_key, values.size(0));
  check(match_key, type, -1, "match_key");
  const int64_t* start = static_cast<const int64_t*>(match_start.data_ptr());
  int64_t* item = static_cast<int64_t*>(match_item.mutable_data_ptr());
  for (int64_t m = start[0]; m < start[values.size(0)]; ++m) {
    STD_TORCH_CHECK(item[m] >= 0 && item[m] < values.size(1), "match_item is outside the tile");
  }
  if (type == ScalarType::Float) {
    read_rows<float>(values, row_term, column_term, metric, start, item,
                     static_cast<float*>(match_key.mutable_data_ptr()));
  } else {
    read_rows<double>(values, row_term, column_term, metric, start, item,
                      static_cast<double*>(match_key.mutable_data_ptr()));
  }
}

void count_preceding(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& match_start,
                     const Tensor& match_item, const Tensor& match_key, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, std::optional<Tensor> removed,
                     Tensor preceding, Tensor tied, Tensor nearest, Tensor moved) {
  const ScalarType type = check_tile(values, row_term, column_term, metric);
  const int64_t rows = values.size(0), matches = match_item.numel();
  check_matches(match_start, match_item, match_key, rows);
  check(match_key, type, matches, "match_key");
  check(preceding, ScalarType::Long, matches, "preceding");
  check(tied, ScalarType::Long, rows, "tied");
  check(nearest, type, rows, "nearest");
  check(moved, ScalarType::Long, rows, "moved");
  check_left_out(ignored_start, ignored_item, row_camera, column_camera, removed, rows,
                 values.size(1));
  const auto run = [&](auto key) {
    count_tile(tile_of<decltype(key)>(values, row_term, column_term, metric, offset, match_start,
                                      match_item, match_key, ignored_start, ignored_item,
                                      row_camera, column_camera, removed, preceding, tied, nearest,
                                      moved));
  };
  type == ScalarType::Float ? run(0.0F) : run(0.0);
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("sort_matches", TORCH_BOX(&mmga::sort_matches));
  m.impl("read_matches", TORCH_BOX(&mmga::read_matches));
  m.impl("count_preceding", TORCH_BOX(&mmga::count_preceding));
}
