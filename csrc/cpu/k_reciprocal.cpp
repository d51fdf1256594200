// k-reciprocal encoding on the CPU: sets, weights and their inverted index as CSR, threads over
// rows (Zhong et al., CVPR 2017). Nothing here is of size N x N: scratch is a few arrays of N
// entries a thread. Bound by memory latency. mmga/ops/reference specifies every function.

#include "args/k_reciprocal.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/dispatch.h"
#include "cpu/csr.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

constexpr int64_t kRowsPerChunk = 256;

// Whether a list holds `item`. Lists are short: comparing all entries by vectors beats leaving
// early.
MMGA_INLINE bool holds(const int32_t* list, int64_t length, int32_t item) {
  int32_t there = 0;
  for (int64_t t = 0; t < length; ++t) there |= -static_cast<int32_t>(list[t] == item);
  return there != 0;
}

// Returns the place of `item` in a list, `length` where it is not there.
MMGA_INLINE int64_t place_in(const int32_t* list, int64_t length, int32_t item) {
  if (!holds(list, length, item)) return length;
  int64_t place = 0;
  while (list[place] != item) ++place;
  return place;
}

// Writes the neighbours of an item that have it among theirs, in order; returns how many.
MMGA_VECTOR_CLONES int64_t reciprocal_row(const NeighbourLists& lists, int64_t item,
                                          int32_t* mutual) {
  const int32_t* list = lists.index + item * lists.width;
  int64_t count = 0;
  for (int64_t t = 0; t < lists.length; ++t) {
    const int32_t* other = lists.index + list[t] * lists.width;
    if (holds(other, lists.length, static_cast<int32_t>(item))) mutual[count++] = list[t];
  }
  std::sort(mutual, mutual + count);
  return count;
}

MMGA_VECTOR_CLONES void listed_places(const Csr& sets, const NeighbourLists& lists, int64_t begin,
                                      int64_t end, int64_t* places) {
  const int64_t width = lists.width;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = sets.offsets[i]; e < sets.offsets[i + 1]; ++e) {
      const int32_t j = sets.columns[e];
      const int64_t mine = place_in(lists.index + i * width, width, j);
      int64_t place = i * width + mine;
      if (mine == width) {
        const int64_t theirs = place_in(lists.index + j * width, width, static_cast<int32_t>(i));
        place = theirs == width ? -1 : j * width + theirs;
      }
      places[e - sets.offsets[begin]] = place;
    }
  }
}

// The items below n that a thread has marked for a row, and the members of the row in the making.
struct SetScratch {
  std::vector<int32_t> mark;
  AscendingSet joined;
};

struct MeanScratch {
  std::vector<double> sum;
  AscendingSet touched;
};

struct Cpu {
  static Sets reciprocal_sets(const Tensor& like, const NeighbourLists& lists) {
    ChunkedRows rows(lists.items, kRowsPerChunk);
    rows.fill([&] { return std::vector<int32_t>(lists.length); },
              [&](auto& mutual, int64_t item, auto& columns, auto&) {
                const int64_t count = reciprocal_row(lists, item, mutual.data());
                columns.insert(columns.end(), mutual.begin(), mutual.begin() + count);
              });
    return {rows.offsets(like), rows.columns(like)};
  }

  static Sets expand_sets(const Tensor& like, const Csr& sets, const Csr& half) {
    const int64_t n = sets.rows;
    ChunkedRows rows(n, kRowsPerChunk);
    const auto append = [&](SetScratch& scratch, int64_t i, auto& columns, auto&) {
      auto& [mark, joined] = scratch;
      const int32_t* own = sets.columns + sets.offsets[i];
      const int64_t size = sets.offsets[i + 1] - sets.offsets[i];
      // mark[l] == i: l is in R(i). Each row is made once: marks of others never need clearing.
      for (int64_t t = 0; t < size; ++t) {
        mark[own[t]] = static_cast<int32_t>(i);
        joined.insert(own[t]);
      }
      for (int64_t t = 0; t < size; ++t) {
        const int32_t* other = half.columns + half.offsets[own[t]];
        const int64_t length = half.offsets[own[t] + 1] - half.offsets[own[t]];
        int64_t common = 0;
        for (int64_t u = 0; u < length; ++u) common += mark[other[u]] == i;
        if (3 * common > 2 * length) {
          for (int64_t u = 0; u < length; ++u) joined.insert(other[u]);
        }
      }
      joined.drain([&](int32_t l) { columns.push_back(l); });
    };
    rows.fill([&] { return SetScratch{std::vector<int32_t>(n, -1), AscendingSet(n)}; }, append);
    return {rows.offsets(like), rows.columns(like)};
  }

  template <typename T>
  static void listed_distances(const Tensor&, const Csr& sets, const NeighbourLists& lists,
                               const T* distances, double* result) {
    share_ranges(sets.rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> places;
      for (int64_t first = begin; first < end; first += kRowsPerChunk) {
        const int64_t last = std::min(end, first + kRowsPerChunk);
        const int64_t base = sets.offsets[first];
        places.resize(sets.offsets[last] - base);
        listed_places(sets, lists, first, last, places.data());
        for (size_t e = 0; e < places.size(); ++e) {
          result[base + e] = places[e] < 0 ? -1.0 : static_cast<double>(distances[places[e]]);
        }
      }
    });
  }

  static void encode(const Tensor&, const Csr& rows, const double* maxima, double* weights) {
    const double* d = rows.values;
    share_ranges(rows.rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = rows.offsets[i], last = rows.offsets[i + 1];
        double least = 0.0, total = 0.0;
        if (maxima == nullptr && first < last) least = *std::min_element(d + first, d + last);
        for (int64_t e = first; e < last; ++e) {
          double scaled = d[e] - least;
          if (maxima != nullptr) scaled = maxima[i] > 0 ? d[e] / maxima[i] : 0.0;
          weights[e] = std::exp(-scaled);
          total += weights[e];
        }
        for (int64_t e = first; e < last; ++e) weights[e] /= total;
      }
    });
  }

  static SparseRows average_rows(const Tensor& like, const Csr& v, const NeighbourLists& lists) {
    ChunkedRows rows(v.rows, kRowsPerChunk);
    const auto append = [&](MeanScratch& scratch, int64_t i, auto& columns, auto& values) {
      auto& [sum, touched] = scratch;
      for (int64_t t = 0; t < lists.length; ++t) {
        const int32_t j = lists.index[i * lists.width + t];
        for (int64_t e = v.offsets[j]; e < v.offsets[j + 1]; ++e) {
          sum[v.columns[e]] += v.values[e];
          touched.insert(v.columns[e]);
        }
      }
      touched.drain([&, &sum = sum](int32_t l) {
        columns.push_back(l);
        values.push_back(sum[l] / lists.length);
        sum[l] = 0.0;
      });
    };
    rows.fill([&] { return MeanScratch{std::vector<double>(v.rows, 0.0), AscendingSet(v.rows)}; },
              append);
    return {rows.offsets(like), rows.columns(like), rows.values(like)};
  }

  // A counting sort by column: row ranges are counted and written by different threads, each range
  // with its own place inside every column, so that rows ascend whatever the number of threads.
  static SparseRows transpose_rows(const Tensor& like, const Csr& v, int64_t first) {
    const int64_t n = v.rows, total = v.offsets[n] - v.offsets[first];
    const Tensor offsets = new_tensor<int64_t>(like, {n + 1});
    const Tensor rows = new_tensor<int32_t>(like, {total});
    const Tensor weights = new_tensor<double>(like, {total});
    auto* begin_of = data_of<int64_t>(offsets);
    auto* out_rows = data_of<int32_t>(rows);
    auto* out_values = data_of<double>(weights);
    const int64_t threads = std::clamp<int64_t>(kernel_threads(), 1, 8);
    const int64_t parts = std::clamp<int64_t>(total / (kGrain / 2), 1, threads);
    const int64_t span = (n - first + parts - 1) / parts;
    std::vector<std::vector<int64_t>> next(parts, std::vector<int64_t>(n, 0));
    const auto each_part = [&](const auto& take) {
      share(parts, [&](const auto& next_part) {
        for (int64_t p = next_part(); p < parts; p = next_part()) {
          take(next[p], std::min(first + p * span, n), std::min(first + (p + 1) * span, n));
        }
      });
    };
    each_part([&](auto& counts, int64_t low, int64_t high) {
      for (int64_t e = v.offsets[low]; e < v.offsets[high]; ++e) ++counts[v.columns[e]];
    });
    int64_t place = 0;
    for (int64_t l = 0; l < n; ++l) {
      begin_of[l] = place;
      for (auto& counts : next) {
        const int64_t count = counts[l];
        counts[l] = place;
        place += count;
      }
    }
    begin_of[n] = place;
    each_part([&](auto& places, int64_t low, int64_t high) {
      for (int64_t i = low; i < high; ++i) {
        for (int64_t e = v.offsets[i]; e < v.offsets[i + 1]; ++e) {
          const int64_t slot = places[v.columns[e]]++;
          out_rows[slot] = static_cast<int32_t>(i);
          out_values[slot] = v.values[e];
        }
      }
    });
    return {offsets, rows, weights};
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("reciprocal_sets", TORCH_BOX(&mmga::reciprocal_sets<mmga::Cpu>));
  m.impl("expand_sets", TORCH_BOX(&mmga::expand_sets<mmga::Cpu>));
  m.impl("listed_distances", TORCH_BOX(&mmga::listed_distances<mmga::Cpu>));
  m.impl("encode", TORCH_BOX(&mmga::encode<mmga::Cpu>));
  m.impl("average_rows", TORCH_BOX(&mmga::average_rows<mmga::Cpu>));
  m.impl("transpose_rows", TORCH_BOX(&mmga::transpose_rows<mmga::Cpu>));
}
