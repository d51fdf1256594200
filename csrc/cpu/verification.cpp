// count_impostors on the CPU: a histogram of the keys of a tile that are no match, and the nearest.
//
// A row is taken in segments that stay in the L1 cache: keys are made from inner products, a first
// guess of each key's bin is made in vector code, and one step or a search mends it. Every thread
// counts into a histogram of its own; sums of integers do not depend on their order.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

#include "checks.h"
#include "common.h"
#include "keys.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Keys that one thread should have before another is worth waking: each has a histogram to clear.
constexpr int64_t kGrain = 1 << 18;

// Guesses bins as if all were equally wide, in the key's unit or in that of its square root.
template <typename T>
__attribute__((always_inline)) inline void guess_body(const T* keys, int64_t width, bool roots,
                                                      T scale, T last, int32_t* place) {
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

// A template cannot be compiled for several instruction sets, an overload can.
#define MMGA_IMPOSTOR_KERNELS(T)                                                           \
  MMGA_VECTOR_CLONES void guess(const T* keys, int64_t width, bool roots, T scale, T last, \
                                int32_t* place) {                                          \
    guess_body<T>(keys, width, roots, scale, last, place);                                 \
  }
MMGA_IMPOSTOR_KERNELS(float)
MMGA_IMPOSTOR_KERNELS(double)
#undef MMGA_IMPOSTOR_KERNELS

template <typename T>
class Counter {
 public:
  explicit Counter(const Impostors<T>& tile) : tile_(tile), counts_(tile.bins + 1) {
    // The last edge may lie beyond all keys: the one before it tells how wide bins are.
    const int64_t at = std::max<int64_t>(0, tile.bins - 2);
    const double edge = tile.edges[at];
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
    const bool given = tile_.metric == kGiven;
    make_keys(tile_.values + row * tile_.row_stride + start, width, tile_.metric,
              given ? T(0) : tile_.row_term[row], given ? nullptr : tile_.column_term + start,
              keys_, minima_);
    guess(keys_, width, roots(), scale_, static_cast<T>(tile_.bins - 1), place_);
    std::fill(kept_, kept_ + width, true);
    const int64_t offset = tile_.offset + start;
    const int64_t* end = tile_.ignored_item + tile_.ignored_start[row + 1];
    const int64_t* item =
        std::lower_bound(tile_.ignored_item + tile_.ignored_start[row], end, offset);
    for (; item < end && *item < offset + width; ++item) kept_[*item - offset] = false;
    if (tile_.removed != nullptr) {
      const bool* removed = tile_.removed + row * tile_.removed_stride + start;
      for (int64_t j = 0; j < width; ++j) kept_[j] = kept_[j] && !removed[j];
    }
    if (tile_.row_camera != nullptr && !tile_.cross_camera) leave_out_camera(row, start, width);
    find_nearest(row, start, width);
    if (tile_.row_camera != nullptr && tile_.cross_camera) leave_out_camera(row, start, width);
    for (int64_t j = 0; j < width; ++j) {
      if (kept_[j]) ++counts_[bin_of(keys_[j], place_[j])];
    }
  }

  void leave_out_camera(int64_t row, int64_t start, int64_t width) {
    const int32_t own = tile_.row_camera[row];
    const int32_t* camera = tile_.column_camera + start;
    for (int64_t j = 0; j < width; ++j) kept_[j] = kept_[j] && camera[j] != own;
  }

  void find_nearest(int64_t row, int64_t start, int64_t width) {
    double nearest = tile_.nearest[row];
    // Most segments hold nothing nearer.
    if (smallest(width) > nearest) return;
    for (int64_t j = 0; j < width; ++j) {
      const double key = keys_[j];
      if (key > nearest || !kept_[j]) continue;
      if (tile_.known != nullptr && !tile_.known[start + j]) continue;
      const int64_t item = tile_.offset + start + j;
      if (key < nearest || (key == nearest && item < tile_.nearest_item[row])) {
        nearest = key;
        tile_.nearest_item[row] = item;
      }
    }
    tile_.nearest[row] = nearest;
  }

  // The smallest key of a segment; NaN is none.
  T smallest(int64_t width) const {
    T low = std::numeric_limits<T>::infinity();
    for (int64_t group = 0; group < width / kGroup; ++group) low = std::min(low, minima_[group]);
    for (int64_t j = width / kGroup * kGroup; j < width; ++j) low = std::min(low, keys_[j]);
    return low;
  }

  // The first bin whose edge is not below the key; `bins` past the last edge.
  int64_t bin_of(double key, int64_t place) const {
    const double* edges = tile_.edges;
    if (place > 0 && !(edges[place - 1] < key)) --place;
    if (edges[place] < key && place < tile_.bins - 1) ++place;
    const bool found = !(edges[place] < key) && (place == 0 || edges[place - 1] < key);
    if (__builtin_expect(found, 1)) return place;
    return std::lower_bound(edges, edges + tile_.bins, key) - edges;
  }

  const Impostors<T>& tile_;
  std::vector<int64_t> counts_;
  T scale_;
  alignas(64) T keys_[kSegment];
  T minima_[kSegment / kGroup];
  alignas(64) int32_t place_[kSegment];
  alignas(64) bool kept_[kSegment];
};

template <typename T>
void count_tile(const Impostors<T>& tile) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tile.width));
  std::mutex mutex;
  torch::stable::parallel_for(0, tile.rows, grain, [&](int64_t first, int64_t last) {
    Counter<T> counter(tile);
    for (int64_t row = first; row < last; ++row) counter.count(row);
    const std::lock_guard<std::mutex> lock(mutex);
    counter.add_to(tile.counts);
  });
}

void count_impostors(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, bool cross_camera,
                     std::optional<Tensor> removed, std::optional<Tensor> known,
                     const Tensor& edges, Tensor counts, Tensor nearest, Tensor nearest_item) {
  const ScalarType type = check_tile(values, row_term, column_term, metric);
  const int64_t rows = values.size(0);
  const int64_t width = values.size(1);
  check_left_out(ignored_start, ignored_item, row_camera, column_camera, removed, rows, width);
  if (known.has_value()) check(*known, ScalarType::Bool, width, "known");
  const int64_t bins = edges.numel();
  STD_TORCH_CHECK(bins >= 1 && bins < (1 << 24), "edges must hold 1 to 2^24 values");
  check(edges, ScalarType::Double, bins, "edges");
  check(counts, ScalarType::Long, bins + 1, "counts");
  check(nearest, ScalarType::Double, rows, "nearest");
  check(nearest_item, ScalarType::Long, rows, "nearest_item");
  const auto run = [&](auto key) {
    using T = decltype(key);
    using detail::pointer;
    count_tile(Impostors<T>{
        pointer<T>(values),
        values.stride(0),
        rows,
        width,
        pointer<T>(row_term),
        pointer<T>(column_term),
        metric,
        offset,
        pointer<int64_t>(ignored_start),
        pointer<int64_t>(ignored_item),
        pointer<int32_t>(row_camera),
        pointer<int32_t>(column_camera),
        cross_camera,
        pointer<bool>(removed),
        removed.has_value() ? removed->stride(0) : 0,
        pointer<bool>(known),
        pointer<double>(edges),
        bins,
        static_cast<int64_t*>(counts.mutable_data_ptr()),
        static_cast<double*>(nearest.mutable_data_ptr()),
        static_cast<int64_t*>(nearest_item.mutable_data_ptr()),
    });
  };
  type == ScalarType::Float ? run(0.0F) : run(0.0);
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("count_impostors", TORCH_BOX(&mmga::count_impostors));
}
