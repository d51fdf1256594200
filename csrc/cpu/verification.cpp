// count_impostors on the CPU: a histogram of the keys of a tile that are no match, and the nearest.
//
// A row is taken in segments that fit the L1 cache: keys are made from inner products, a first
// guess of each key's bin is made in vector code, and one step or a search corrects it. Every
// thread counts into a histogram of its own; sums of integers do not depend on their order.

#include "args/verification.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "common/dispatch.h"
#include "cpu/keys.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Keys below which another thread costs more than it saves: each has a histogram to clear.
constexpr int64_t kHistogramGrain = 1 << 18;

// Guesses bins as if all were equally wide, in the key's unit or in that of its square root.
template <typename T>
MMGA_VECTOR_CLONES void guess(const T* keys, int64_t width, bool roots, T scale, T last,
                              int32_t* place) {
  if (roots) {
    for (int64_t j = 0; j < width; ++j) {
      const T at = std::sqrt(keys[j]) * scale;
      const T bounded = at < last ? at : last;  // NaN, too
      place[j] = static_cast<int32_t>(bounded > 0 ? bounded : T(0));
    }
  } else {
    for (int64_t j = 0; j < width; ++j) {
      const T at = keys[j] * scale;
      const T bounded = at < last ? at : last;
      place[j] = static_cast<int32_t>(bounded > 0 ? bounded : T(0));
    }
  }
}

template <typename T>
class Counter {
 public:
  Counter(const TileView<T>& tile, const Histogram& out)
      : tile_(tile), out_(out), counts_(out.bins + 1) {
    // The last edge may be beyond all keys: the one before it tells how wide bins are.
    const int64_t at = std::max<int64_t>(0, out.bins - 2);
    const double edge = out.edges[at];
    const double unit = roots() ? std::sqrt(edge) : edge;
    scale_ = unit > 0 ? static_cast<T>((at + 1) / unit) : T(0);
  }

  void count(int64_t row) {
    for (int64_t start = 0; start < tile_.width; start += kSegment) {
      segment(row, start, std::min(kSegment, tile_.width - start));
    }
  }

  void add_to(int64_t* counts) const {
    for (size_t bin = 0; bin < counts_.size(); ++bin) counts[bin] += counts_[bin];
  }

 private:
  bool roots() const { return tile_.metric == kEuclidean; }

  void segment(int64_t row, int64_t start, int64_t width) {
    make_segment(tile_, row, start, width, keys_, minima_);
    guess(keys_, width, roots(), scale_, static_cast<T>(out_.bins - 1), place_);
    std::fill(kept_, kept_ + width, true);
    each_ignored(tile_, row, start, width, [&](int64_t column) { kept_[column] = false; });
    if (tile_.removed != nullptr) {
      const bool* removed = tile_.removed + row * tile_.removed_stride + start;
      for (int64_t j = 0; j < width; ++j) kept_[j] = kept_[j] && !removed[j];
    }
    if (tile_.row_camera != nullptr && !out_.cross_camera) exclude_own_camera(row, start, width);
    find_nearest(row, start, width);
    if (tile_.row_camera != nullptr && out_.cross_camera) exclude_own_camera(row, start, width);
    const double* edges = out_.edges;
    const int64_t bins = out_.bins;
    int64_t* counts = counts_.data();
    for (int64_t j = 0; j < width; ++j) {
      if (kept_[j]) ++counts[bin_of(edges, bins, keys_[j], place_[j])];
    }
  }

  void exclude_own_camera(int64_t row, int64_t start, int64_t width) {
    const int32_t own = tile_.row_camera[row];
    const int32_t* camera = tile_.column_camera + start;
    for (int64_t j = 0; j < width; ++j) kept_[j] = kept_[j] && camera[j] != own;
  }

  void find_nearest(int64_t row, int64_t start, int64_t width) {
    double nearest = out_.nearest[row];
    // Most segments hold nothing nearer.
    if (smallest(width) > nearest) return;
    for (int64_t j = 0; j < width; ++j) {
      const double key = keys_[j];
      if (key > nearest || !kept_[j]) continue;
      if (out_.known != nullptr && !out_.known[start + j]) continue;
      const int64_t item = tile_.offset + start + j;
      if (key < nearest || (key == nearest && item < out_.nearest_item[row])) {
        nearest = key;
        out_.nearest_item[row] = item;
      }
    }
    out_.nearest[row] = nearest;
  }

  // The smallest key of a segment; NaN is none.
  T smallest(int64_t width) const {
    T low = std::numeric_limits<T>::infinity();
    for (int64_t group = 0; group < width / kGroup; ++group) low = std::min(low, minima_[group]);
    for (int64_t j = width / kGroup * kGroup; j < width; ++j) low = std::min(low, keys_[j]);
    return low;
  }

  // Returns the first bin whose edge is not below the key; `bins` past the last edge.
  static int64_t bin_of(const double* edges, int64_t bins, double key, int64_t place) {
    if (place > 0 && !(edges[place - 1] < key)) --place;
    if (edges[place] < key && place < bins - 1) ++place;
    const bool found = !(edges[place] < key) && (place == 0 || edges[place - 1] < key);
    if (__builtin_expect(found, 1)) return place;
    return std::lower_bound(edges, edges + bins, key) - edges;
  }

  const TileView<T>& tile_;
  const Histogram& out_;
  std::vector<int64_t> counts_;
  T scale_;
  alignas(64) T keys_[kSegment];
  T minima_[kSegment / kGroup];
  alignas(64) int32_t place_[kSegment];
  alignas(64) bool kept_[kSegment];
};

struct Cpu {
  template <typename T>
  static void count_impostors(const Tensor&, const TileView<T>& tile, const Histogram& histogram) {
    const int64_t grain = rows_per_thread(tile.width, kHistogramGrain);
    std::mutex mutex;
    const int64_t pieces = (tile.rows + grain - 1) / grain;
    share(pieces, [&](const auto& next) {
      Counter<T> counter(tile, histogram);
      for (int64_t piece = next(); piece < pieces; piece = next()) {
        const int64_t last = std::min(tile.rows, (piece + 1) * grain);
        for (int64_t row = piece * grain; row < last; ++row) counter.count(row);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      counter.add_to(histogram.counts);
    });
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("count_impostors", TORCH_BOX(&mmga::count_impostors<mmga::Cpu>));
}
