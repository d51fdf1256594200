// k-reciprocal sets, their encoding and Jaccard rows as CSR, threads over rows (Zhong et al., CVPR
// 2017). Nothing here is of size N x N: scratch is a few arrays of N entries a thread. Bound by
// memory latency. mmga/ops/reference.py specifies every function.
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
#include <vector>

#include "../common.h"
#include "../jaccard.h"
#include "bits.h"
#include "csr.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsPerChunk = 256;
// Entries below which waking a thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 14;
constexpr int64_t kRowsPerTask = 32;
// Light entries of a row are at most this share of the least overlap; see heavy_rows in
// reference.py. The larger, the fewer entries are heavy and the more overlaps are summed in vain.
constexpr double kLightShare = 0.35, kLighter = 0.7;

struct Csr {
  const int64_t* offsets;
  const int32_t* columns;
  const double* values;
};

// Whether a list holds `item`. Lists are short: comparing all entries by vectors beats leaving
// early.
__attribute__((always_inline)) inline bool holds(const int32_t* list, int64_t length,
                                                 int32_t item) {
  int32_t there = 0;
  for (int64_t t = 0; t < length; ++t) there |= -static_cast<int32_t>(list[t] == item);
  return there != 0;
}

// Place of `item` in a list, `length` where it is not there.
__attribute__((always_inline)) inline int64_t place_in(const int32_t* list, int64_t length,
                                                       int32_t item) {
  if (!holds(list, length, item)) return length;
  int64_t place = 0;
  while (list[place] != item) ++place;
  return place;
}

MMGA_VECTOR_CLONES
void reciprocal_rows(const int32_t* neighbours, int64_t width, int64_t k, int64_t begin,
                     int64_t end, int32_t* counts, int32_t* found) {
  for (int64_t i = begin; i < end; ++i) {
    const int32_t* list = neighbours + i * width;
    int32_t* mutual = found + (i - begin) * k;
    int32_t count = 0;
    for (int64_t t = 0; t < k; ++t) {
      if (holds(neighbours + list[t] * width, k, static_cast<int32_t>(i)))
        mutual[count++] = list[t];
    }
    std::sort(mutual, mutual + count);
    counts[i - begin] = count;
  }
}

std::tuple<Tensor, Tensor> reciprocal_sets(Tensor neighbours, int64_t k) {
  const int64_t n = neighbours.size(0), width = neighbours.size(1);
  STD_TORCH_CHECK(neighbours.is_contiguous() && k >= 1 && k <= width,
                  "reciprocal_sets: neighbours must be contiguous with 1 <= k <= K");
  const auto* lists = neighbours.const_data_ptr<int32_t>();
  ChunkedRows rows(n, kRowsPerChunk, false);
  torch::stable::parallel_for(0, rows.chunks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> found(kRowsPerChunk * k), counts(kRowsPerChunk);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = rows.first_row(c), last = rows.first_row(c + 1);
      reciprocal_rows(lists, width, k, first, last, counts.data(), found.data());
      for (int64_t i = first; i < last; ++i) {
        const int32_t* row = found.data() + (i - first) * k;
        rows.columns(c).insert(rows.columns(c).end(), row, row + counts[i - first]);
        rows.set_count(i, counts[i - first]);
      }
    }
  });
  Tensor offsets = rows.offsets(neighbours);
  return {offsets, rows.gather_columns(neighbours)};
}

std::tuple<Tensor, Tensor> expand_sets(Tensor offsets, Tensor columns, Tensor half_offsets,
                                       Tensor half_columns) {
  const int64_t n = offsets.size(0) - 1;
  const Csr sets{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(), nullptr};
  const Csr half{half_offsets.const_data_ptr<int64_t>(), half_columns.const_data_ptr<int32_t>(),
                 nullptr};
  ChunkedRows rows(n, kRowsPerChunk, false);
  torch::stable::parallel_for(0, rows.chunks(), 1, [&](int64_t begin, int64_t end) {
    // mark[l] == i: l is in R(i). Rows only ascend, so marks of earlier rows never need clearing.
    std::vector<int32_t> mark(n, -1);
    AscendingSet joined(n);
    for (int64_t c = begin; c < end; ++c) {
      auto& out = rows.columns(c);
      for (int64_t i = rows.first_row(c); i < rows.first_row(c + 1); ++i) {
        const int32_t* own = sets.columns + sets.offsets[i];
        const int64_t size = sets.offsets[i + 1] - sets.offsets[i];
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
        const size_t before = out.size();
        joined.drain([&](int32_t l) { out.push_back(l); });
        rows.set_count(i, out.size() - before);
      }
    }
  });
  Tensor result = rows.offsets(offsets);
  return {result, rows.gather_columns(offsets)};
}

MMGA_VECTOR_CLONES
void listed_rows(const Csr& sets, const int32_t* neighbours, int64_t width, int64_t begin,
                 int64_t end, int64_t* places) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = sets.offsets[i]; e < sets.offsets[i + 1]; ++e) {
      const int32_t j = sets.columns[e];
      const int64_t mine = place_in(neighbours + i * width, width, j);
      int64_t place = i * width + mine;
      if (mine == width) {
        const int64_t theirs = place_in(neighbours + j * width, width, static_cast<int32_t>(i));
        place = theirs == width ? -1 : j * width + theirs;
      }
      places[e - sets.offsets[begin]] = place;
    }
  }
}

Tensor listed_distances(Tensor offsets, Tensor columns, Tensor neighbours, Tensor distances) {
  const int64_t n = offsets.size(0) - 1, width = neighbours.size(1);
  STD_TORCH_CHECK(neighbours.is_contiguous() && distances.is_contiguous(),
                  "listed_distances: neighbours and distances must be contiguous");
  const bool wide = distances.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || distances.scalar_type() == ScalarType::Float,
                  "listed_distances: distances must be float32 or float64");
  const Csr sets{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(), nullptr};
  const auto* lists = neighbours.const_data_ptr<int32_t>();
  const auto* narrow_values = wide ? nullptr : distances.const_data_ptr<float>();
  const auto* wide_values = wide ? distances.const_data_ptr<double>() : nullptr;
  Tensor result = torch::stable::new_empty(distances, {columns.size(0)}, ScalarType::Double);
  auto* out = result.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, n, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> places;
    for (int64_t first = begin; first < end; first += kRowsPerChunk) {
      const int64_t last = std::min(end, first + kRowsPerChunk);
      const int64_t base = sets.offsets[first];
      places.resize(sets.offsets[last] - base);
      listed_rows(sets, lists, width, first, last, places.data());
      for (size_t e = 0; e < places.size(); ++e) {
        const int64_t place = places[e];
        out[base + e] = place < 0 ? -1.0
                        : wide    ? wide_values[place]
                                  : static_cast<double>(narrow_values[place]);
      }
    }
  });
  return result;
}

Tensor encode(Tensor offsets, Tensor distances, std::optional<Tensor> maxima) {
  const int64_t n = offsets.size(0) - 1;
  const auto* begin_of = offsets.const_data_ptr<int64_t>();
  const auto* d = distances.const_data_ptr<double>();
  const double* maximum = maxima.has_value() ? maxima->const_data_ptr<double>() : nullptr;
  Tensor result = torch::stable::empty_like(distances);
  auto* out = result.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, n, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = begin_of[i], last = begin_of[i + 1];
      double least = 0.0, total = 0.0;
      if (maximum == nullptr && first < last) least = *std::min_element(d + first, d + last);
      for (int64_t e = first; e < last; ++e) {
        double scaled = d[e] - least;
        if (maximum != nullptr) scaled = maximum[i] > 0 ? d[e] / maximum[i] : 0.0;
        out[e] = std::exp(-scaled);
        total += out[e];
      }
      for (int64_t e = first; e < last; ++e) out[e] /= total;
    }
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> average_rows(Tensor offsets, Tensor columns, Tensor values,
                                                Tensor neighbours, int64_t k2) {
  const int64_t n = offsets.size(0) - 1, width = neighbours.size(1);
  STD_TORCH_CHECK(neighbours.is_contiguous() && k2 >= 1 && k2 <= width,
                  "average_rows: neighbours must be contiguous with 1 <= k2 <= K");
  const Csr v{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
              values.const_data_ptr<double>()};
  const auto* lists = neighbours.const_data_ptr<int32_t>();
  ChunkedRows rows(n, kRowsPerChunk, true);
  torch::stable::parallel_for(0, rows.chunks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(n, 0.0);
    AscendingSet touched(n);
    for (int64_t c = begin; c < end; ++c) {
      auto& out = rows.columns(c);
      auto& weights = rows.values(c);
      for (int64_t i = rows.first_row(c); i < rows.first_row(c + 1); ++i) {
        for (int64_t t = 0; t < k2; ++t) {
          const int32_t j = lists[i * width + t];
          for (int64_t e = v.offsets[j]; e < v.offsets[j + 1]; ++e) {
            sum[v.columns[e]] += v.values[e];
            touched.insert(v.columns[e]);
          }
        }
        const size_t before = out.size();
        touched.drain([&](int32_t l) {
          out.push_back(l);
          weights.push_back(sum[l] / k2);
          sum[l] = 0.0;
        });
        rows.set_count(i, out.size() - before);
      }
    }
  });
  Tensor result = rows.offsets(offsets);
  return {result, rows.gather_columns(offsets), rows.gather_values(offsets)};
}

// A counting sort by column: row ranges are counted and written by different threads, each range
// with its own place inside every column, so that rows ascend whatever the number of threads.
std::tuple<Tensor, Tensor, Tensor> transpose_rows(Tensor offsets, Tensor columns, Tensor values,
                                                  int64_t first) {
  const int64_t n = offsets.size(0) - 1;
  const Csr v{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
              values.const_data_ptr<double>()};
  const int64_t total = v.offsets[n] - v.offsets[first];
  Tensor inverted = torch::stable::new_empty(offsets, {n + 1});
  Tensor rows = torch::stable::new_empty(columns, {total});
  Tensor weights = torch::stable::new_empty(values, {total});
  auto* begin_of = inverted.mutable_data_ptr<int64_t>();
  auto* out_rows = rows.mutable_data_ptr<int32_t>();
  auto* out_values = weights.mutable_data_ptr<double>();
  const int64_t threads = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, 8);
  const int64_t parts = std::clamp<int64_t>(total / kEntriesPerThread, 1, threads);
  const int64_t span = (n - first + parts - 1) / parts;
  std::vector<std::vector<int64_t>> next(parts, std::vector<int64_t>(n, 0));
  const auto range = [&](int64_t p) {
    return std::pair(std::min(first + p * span, n), std::min(first + (p + 1) * span, n));
  };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const auto [low, high] = range(p);
      for (int64_t e = v.offsets[low]; e < v.offsets[high]; ++e) ++next[p][v.columns[e]];
    }
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
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const auto [low, high] = range(p);
      for (int64_t i = low; i < high; ++i) {
        for (int64_t e = v.offsets[i]; e < v.offsets[i + 1]; ++e) {
          const int64_t slot = next[p][v.columns[e]]++;
          out_rows[slot] = static_cast<int32_t>(i);
          out_values[slot] = v.values[e];
        }
      }
    }
  });
  return {inverted, rows, weights};
}

// One row's overlaps with all others, and marks on the blocks of them that are not 0.
struct Overlaps {
  static constexpr int64_t kBlock = 8, kMarks = 8;  // a cache line of sums, a word of marks

  explicit Overlaps(int64_t n)
      : marks((n + kBlock * kMarks - 1) / (kBlock * kMarks) * kMarks, 0),
        sums(marks.size() * kBlock, 0.0) {}
  int64_t blocks() const { return static_cast<int64_t>(marks.size()); }

  std::vector<uint8_t> marks;
  std::vector<double> sums;
};

void add_overlaps(double weight, const int32_t* rows, const double* values, int64_t count,
                  double* sums, uint8_t* marks) {
  for (int64_t f = 0; f < count; ++f) {
    const int32_t j = rows[f];
    sums[j] += weight < values[f] ? weight : values[f];
    marks[j / Overlaps::kBlock] = 1;
  }
}

// Returns how many overlaps are >= least, and clears them.
MMGA_VECTOR_CLONES
int64_t count_overlaps(double* sums, uint8_t* marks, int64_t blocks, double least) {
  constexpr int64_t kSums = Overlaps::kBlock * Overlaps::kMarks;
  int64_t count = 0;
  for (int64_t first = 0; first < blocks; first += Overlaps::kMarks) {
    uint64_t word;
    std::memcpy(&word, marks + first, sizeof word);
    if (word == 0) continue;
    std::memset(marks + first, 0, sizeof word);
    double* part = sums + first * Overlaps::kBlock;
    for (int64_t t = 0; t < kSums; ++t) count += part[t] >= least;
    std::memset(part, 0, kSums * sizeof(double));
  }
  return count;
}

// Writes the distances of overlaps >= least in ascending order of their items, returns how many,
// and clears the overlaps. There is room for `capacity`.
MMGA_VECTOR_CLONES
int64_t drain_overlaps(double* sums, uint8_t* marks, int64_t blocks, double least, int64_t capacity,
                       int32_t* columns, double* distances) {
  constexpr int64_t kBlock = Overlaps::kBlock;
  int64_t count = 0;
  for (int64_t first = 0; first < blocks; first += Overlaps::kMarks) {
    uint64_t word;
    std::memcpy(&word, marks + first, sizeof word);
    if (word == 0) continue;
    std::memset(marks + first, 0, sizeof word);
    for (int64_t b = first; b < first + Overlaps::kMarks; ++b) {
      double* block = sums + b * kBlock;
      double largest = 0.0;
      for (int64_t t = 0; t < kBlock; ++t) largest = largest < block[t] ? block[t] : largest;
      if (largest >= least) {
        double distance[kBlock];
        for (int64_t t = 0; t < kBlock; ++t) {
          const double d = 1.0 - block[t] / (2.0 - block[t]);
          distance[t] = d > 0.0 ? d : 0.0;
        }
        if (count + kBlock <= capacity) {  // writes all, keeps some: no branch to mispredict
          for (int64_t t = 0; t < kBlock; ++t) {
            columns[count] = static_cast<int32_t>(b * kBlock + t);
            distances[count] = distance[t];
            count += block[t] >= least;
          }
        } else {
          for (int64_t t = 0; t < kBlock; ++t) {
            if (!(block[t] >= least)) continue;
            columns[count] = static_cast<int32_t>(b * kBlock + t);
            distances[count++] = distance[t];
          }
        }
      }
      std::memset(block, 0, kBlock * sizeof(double));
    }
  }
  return count;
}

std::tuple<Tensor, Tensor, Tensor> jaccard_rows(Tensor offsets, Tensor columns, Tensor values,
                                                Tensor inverted_offsets, Tensor inverted_rows,
                                                Tensor inverted_values, Tensor rows_of_interest,
                                                std::optional<double> max_distance, bool upper) {
  const int64_t n = offsets.size(0) - 1, m = rows_of_interest.size(0);
  STD_TORCH_CHECK(!max_distance.has_value() || *max_distance < 1.0,
                  "jaccard_rows: max_distance must be below 1");
  const Csr v{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
              values.const_data_ptr<double>()};
  const Csr inverted{inverted_offsets.const_data_ptr<int64_t>(),
                     inverted_rows.const_data_ptr<int32_t>(),
                     inverted_values.const_data_ptr<double>()};
  const auto* chosen = rows_of_interest.const_data_ptr<int64_t>();
  const double least = least_overlap(max_distance.value_or(std::nextafter(1.0, 0.0)));
  const auto add_row = [&](int64_t r, Overlaps& overlaps) {
    for (int64_t e = v.offsets[chosen[r]]; e < v.offsets[chosen[r] + 1]; ++e) {
      int64_t first = inverted.offsets[v.columns[e]];
      const int64_t last = inverted.offsets[v.columns[e] + 1];
      if (upper) {
        const int32_t* from = inverted.columns + first;
        first += std::lower_bound(from, inverted.columns + last, chosen[r]) - from;
      }
      add_overlaps(v.values[e], inverted.columns + first, inverted.values + first, last - first,
                   overlaps.sums.data(), overlaps.marks.data());
    }
  };
  // Overlaps are computed twice: it costs less than rows of unknown length, which would have to be
  // copied, and no more memory than the result.
  const auto each_row = [&](const auto& take) {
    torch::stable::parallel_for(0, m, kRowsPerTask, [&](int64_t begin, int64_t end) {
      Overlaps overlaps(n);
      for (int64_t r = begin; r < end; ++r) {
        add_row(r, overlaps);
        take(r, overlaps);
      }
    });
  };
  Tensor row_offsets = torch::stable::new_empty(offsets, {m + 1});
  auto* begin_of = row_offsets.mutable_data_ptr<int64_t>();
  begin_of[0] = 0;
  each_row([&](int64_t r, Overlaps& o) {
    begin_of[r + 1] = count_overlaps(o.sums.data(), o.marks.data(), o.blocks(), least);
  });
  for (int64_t r = 0; r < m; ++r) begin_of[r + 1] += begin_of[r];
  Tensor found = torch::stable::new_empty(columns, {begin_of[m]});
  Tensor distances = torch::stable::new_empty(values, {begin_of[m]});
  auto* out = found.mutable_data_ptr<int32_t>();
  auto* out_distances = distances.mutable_data_ptr<double>();
  expect_large(out, begin_of[m] * sizeof(int32_t));
  expect_large(out_distances, begin_of[m] * sizeof(double));
  each_row([&](int64_t r, Overlaps& o) {
    drain_overlaps(o.sums.data(), o.marks.data(), o.blocks(), least, begin_of[r + 1] - begin_of[r],
                   out + begin_of[r], out_distances + begin_of[r]);
  });
  return {row_offsets, found, distances};
}

// The sum of the values below a limit.
MMGA_VECTOR_CLONES double sum_below(const double* values, int64_t count, double limit) {
  double sums[4] = {};
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    for (int64_t u = 0; u < 4; ++u) sums[u] += values[t + u] < limit ? values[t + u] : 0.0;
  }
  for (; t < count; ++t) sums[0] += values[t] < limit ? values[t] : 0.0;
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The weight from which on entries of a row are kept, so that all lighter ones are at most `rest`.
double least_weight(const double* values, int64_t count, double rest) {
  double weight = count > 0 ? *std::max_element(values, values + count) : 0.0;
  while (weight > 0 && sum_below(values, count, weight) > rest) weight *= kLighter;
  return weight;
}

std::tuple<Tensor, Tensor, Tensor> heavy_rows(Tensor offsets, Tensor columns, Tensor values,
                                              double max_distance) {
  const int64_t n = offsets.size(0) - 1;
  STD_TORCH_CHECK(max_distance < 1.0, "heavy_rows: max_distance must be below 1");
  const Csr v{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
              values.const_data_ptr<double>()};
  const double rest = kLightShare * least_overlap(max_distance);
  ChunkedRows rows(n, kRowsPerChunk, true);
  torch::stable::parallel_for(0, rows.chunks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      auto& kept = rows.columns(c);
      auto& weights = rows.values(c);
      for (int64_t i = rows.first_row(c); i < rows.first_row(c + 1); ++i) {
        const int64_t first = v.offsets[i], last = v.offsets[i + 1];
        const double least = least_weight(v.values + first, last - first, rest);
        const size_t before = kept.size();
        for (int64_t e = first; e < last; ++e) {
          if (v.values[e] < least) continue;
          kept.push_back(v.columns[e]);
          weights.push_back(v.values[e]);
        }
        rows.set_count(i, kept.size() - before);
      }
    }
  });
  Tensor result = rows.offsets(offsets);
  return {result, rows.gather_columns(offsets), rows.gather_values(offsets)};
}

// The overlap of a row with the one whose weights are given: added in the order of columns, as over
// the one's own entries.
MMGA_VECTOR_CLONES double sum_of_minima(const double* weights, const int32_t* columns,
                                        const double* values, int64_t count) {
  double sum = 0.0;
  for (int64_t t = 0; t < count; ++t) {
    const double weight = weights[columns[t]];
    sum += weight < values[t] ? weight : values[t];
  }
  return sum;
}

// Returns a bit for each of 64 bounds that is at least `least`, and makes them 0.
MMGA_VECTOR_CLONES uint64_t reaching(float* bounds, float least) {
  uint8_t reached[64];
  for (int64_t t = 0; t < 64; ++t) reached[t] = bounds[t] >= least;
  std::memset(bounds, 0, 64 * sizeof(float));
  return bits_of_bytes(reached);
}

// Finds the items near one. An overlap consists of entries that are heavy in both rows, and of
// others, which are at most the light entries of both: only items whose heavy entries share enough
// can reach the least overlap, and those few overlaps are summed in full.
class NearRow {
 public:
  NearRow(const Csr& v, const Csr& heavy, const Csr& index, int64_t n, double least)
      : v_(v),
        heavy_(heavy),
        index_(index),
        least_(least),
        weights_(n, 0.0),
        marks_((n + kBlock * kMarks - 1) / (kBlock * kMarks) * kMarks, 0),
        shared_(marks_.size() * kBlock, 0.0F) {}

  // Appends the items from the one on in ascending order, and their distances.
  void list(int64_t item, std::vector<int32_t>& columns, std::vector<double>& distances) {
    const int64_t first = v_.offsets[item], last = v_.offsets[item + 1];
    for (int64_t e = first; e < last; ++e) weights_[v_.columns[e]] = v_.values[e];
    for (int64_t e = heavy_.offsets[item]; e < heavy_.offsets[item + 1]; ++e) {
      fetch(index_, heavy_.columns[e]);
    }
    for (int64_t e = heavy_.offsets[item]; e < heavy_.offsets[item + 1]; ++e) {
      add(heavy_.values[e], heavy_.columns[e], item);
    }
    // Sums of so many float32 of one sign are off by no more than this share of them. What is not
    // marked has a sum of 0 and must not pass.
    const double share_off = std::min(0.5, static_cast<double>(last - first + 8) * 0x1p-23);
    const auto enough =
        std::max(static_cast<float>((1 - 2 * kLightShare) * least_ * (1 - share_off)),
                 std::numeric_limits<float>::min());
    near_.clear();
    for (size_t word = item / (kBlock * kMarks) * kMarks; word < marks_.size(); word += kMarks) {
      uint64_t marked;
      std::memcpy(&marked, marks_.data() + word, sizeof marked);
      if (marked == 0) continue;
      std::memset(marks_.data() + word, 0, sizeof marked);
      uint64_t open = reaching(shared_.data() + word * kBlock, enough);
      for (; open != 0; open &= open - 1) {
        near_.push_back(static_cast<int32_t>(word * kBlock + __builtin_ctzll(open)));
        fetch(v_, near_.back());
      }
    }
    for (const int32_t other : near_) {
      const int64_t begin = v_.offsets[other], count = v_.offsets[other + 1] - begin;
      const double overlap =
          sum_of_minima(weights_.data(), v_.columns + begin, v_.values + begin, count);
      if (!(overlap >= least_)) continue;
      columns.push_back(other);
      distances.push_back(jaccard_distance(overlap));
    }
    for (int64_t e = first; e < last; ++e) weights_[v_.columns[e]] = 0.0;
  }

 private:
  static constexpr int64_t kBlock = 8, kMarks = 8;

  // Asks for a row that is read soon: rows lie anywhere, and waiting for each costs more than what
  // is done with it.
  static void fetch(const Csr& rows, int64_t row) {
#if defined(__GNUC__)
    constexpr int64_t kLine = 64;
    const auto* columns = reinterpret_cast<const char*>(rows.columns + rows.offsets[row]);
    const auto* values = reinterpret_cast<const char*>(rows.values + rows.offsets[row]);
    const int64_t count = std::min<int64_t>(rows.offsets[row + 1] - rows.offsets[row], 128);
    for (int64_t byte = 0; byte < count * 4; byte += kLine) __builtin_prefetch(columns + byte);
    for (int64_t byte = 0; byte < count * 8; byte += kLine) __builtin_prefetch(values + byte);
#endif
  }

  // A column's rows ascend: those from `from` on are its last.
  void add(double weight, int32_t column, int64_t from) {
    const int64_t first = index_.offsets[column];
    for (int64_t f = index_.offsets[column + 1]; f-- > first;) {
      const int32_t row = index_.columns[f];
      if (row < from) break;
      const double value = index_.values[f];
      shared_[row] += static_cast<float>(weight < value ? weight : value);
      marks_[row / kBlock] = 1;
    }
  }

  const Csr v_, heavy_, index_;
  const double least_;
  std::vector<double> weights_;  // of the one
  std::vector<uint8_t> marks_;   // on blocks of `shared_` that are not 0
  std::vector<float> shared_;    // by heavy entries of both
  std::vector<int32_t> near_;    // items that may be near the one
};

std::tuple<Tensor, Tensor, Tensor> near_rows(Tensor offsets, Tensor columns, Tensor values,
                                             Tensor heavy_offsets, Tensor heavy_columns,
                                             Tensor heavy_values, Tensor index_offsets,
                                             Tensor index_rows, Tensor index_values,
                                             Tensor rows_of_interest, double max_distance) {
  const int64_t n = offsets.size(0) - 1, m = rows_of_interest.size(0);
  STD_TORCH_CHECK(max_distance < 1.0, "near_rows: max_distance must be below 1");
  STD_TORCH_CHECK(heavy_offsets.size(0) == n + 1 && index_offsets.size(0) == n + 1,
                  "near_rows: heavy rows and their index must be of the same items");
  const Csr v{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
              values.const_data_ptr<double>()};
  const Csr heavy{heavy_offsets.const_data_ptr<int64_t>(), heavy_columns.const_data_ptr<int32_t>(),
                  heavy_values.const_data_ptr<double>()};
  const Csr index{index_offsets.const_data_ptr<int64_t>(), index_rows.const_data_ptr<int32_t>(),
                  index_values.const_data_ptr<double>()};
  const auto* chosen = rows_of_interest.const_data_ptr<int64_t>();
  const double least = least_overlap(max_distance);
  ChunkedRows rows(m, kRowsPerTask, true);
  torch::stable::parallel_for(0, rows.chunks(), 1, [&](int64_t begin, int64_t end) {
    NearRow near(v, heavy, index, n, least);
    for (int64_t task = begin; task < end; ++task) {
      // Chunks from both ends in turn: as rows end at the diagonal, threads have equal shares.
      const int64_t c = task % 2 == 0 ? task / 2 : rows.chunks() - 1 - task / 2;
      for (int64_t r = rows.first_row(c); r < rows.first_row(c + 1); ++r) {
        const size_t before = rows.columns(c).size();
        near.list(chosen[r], rows.columns(c), rows.values(c));
        rows.set_count(r, rows.columns(c).size() - before);
      }
    }
  });
  Tensor result = rows.offsets(offsets);
  return {result, rows.gather_columns(offsets), rows.gather_values(offsets)};
}

std::tuple<Tensor, Tensor, Tensor> mirror_rows(Tensor offsets, Tensor columns, Tensor values) {
  const int64_t n = offsets.size(0) - 1;
  const Csr upper{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
                  values.const_data_ptr<double>()};
  Tensor all_offsets = torch::stable::new_zeros(offsets, {n + 1});
  auto* begin_of = all_offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    begin_of[i + 1] += upper.offsets[i + 1] - upper.offsets[i];
    for (int64_t e = upper.offsets[i]; e < upper.offsets[i + 1]; ++e) {
      const int64_t j = upper.columns[e];
      STD_TORCH_CHECK(j >= i && j < n, "mirror_rows: row ", i, " has column ", j);
      if (j > i) ++begin_of[j + 1];
    }
  }
  for (int64_t i = 0; i < n; ++i) begin_of[i + 1] += begin_of[i];
  Tensor all_columns = torch::stable::new_empty(columns, {begin_of[n]});
  Tensor all_values = torch::stable::new_empty(values, {begin_of[n]});
  auto* to = all_columns.mutable_data_ptr<int32_t>();
  auto* to_value = all_values.mutable_data_ptr<double>();
  // Rows in their order write what lies below the diagonal in ascending columns.
  std::vector<int64_t> next(begin_of, begin_of + n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = upper.offsets[i]; e < upper.offsets[i + 1]; ++e) {
      const int64_t j = upper.columns[e];
      to[next[i]] = static_cast<int32_t>(j);
      to_value[next[i]++] = upper.values[e];
      if (j == i) continue;
      to[next[j]] = static_cast<int32_t>(i);
      to_value[next[j]++] = upper.values[e];
    }
  }
  return {all_offsets, all_columns, all_values};
}

// Final distances of one row: every item first as if it had no overlap, then those that do.
template <typename T>
__attribute__((always_inline)) inline void mix_row_body(const T* squared, int64_t gallery,
                                                        double divisor, double factor,
                                                        int64_t power, double lambda, double* out) {
  const double rest = (1 - lambda) * 1.0;
  if (divisor > 0) {
    if (power == 2) {
      for (int64_t g = 0; g < gallery; ++g) {
        const double d = squared[g];
        out[g] = rest + lambda * (d * d / divisor);
      }
    } else {
      for (int64_t g = 0; g < gallery; ++g) {
        out[g] = rest + lambda * (static_cast<double>(squared[g]) / divisor);
      }
    }
  } else {
    for (int64_t g = 0; g < gallery; ++g) {
      out[g] = rest + lambda * (static_cast<double>(squared[g]) * factor);
    }
  }
}

MMGA_VECTOR_CLONES void mix_row(const float* squared, int64_t gallery, double divisor,
                                double factor, int64_t power, double lambda, double* out) {
  mix_row_body(squared, gallery, divisor, factor, power, lambda, out);
}
MMGA_VECTOR_CLONES void mix_row(const double* squared, int64_t gallery, double divisor,
                                double factor, int64_t power, double lambda, double* out) {
  mix_row_body(squared, gallery, divisor, factor, power, lambda, out);
}

template <typename T>
void mix_rows(const Tensor& squared, const double* maxima, const Csr& overlaps, int64_t first,
              double lambda, int64_t power, double scale, double* out) {
  const int64_t gallery = squared.size(1), stride = squared.stride(0);
  const T* d = squared.const_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, kEntriesPerThread / std::max<int64_t>(1, gallery));
  torch::stable::parallel_for(0, squared.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      // No maximum: d is scaled. A maximum of 0: all d are 0, and so is what they become.
      double divisor = maxima == nullptr ? 0.0 : maxima[r];
      if (power == 2) divisor = divisor * divisor;
      const double factor = maxima == nullptr ? scale : 0.0;
      const T* row = d + r * stride;
      double* final_row = out + r * gallery;
      mix_row(row, gallery, divisor, factor, power, lambda, final_row);
      for (int64_t e = overlaps.offsets[r]; e < overlaps.offsets[r + 1]; ++e) {
        const int64_t g = overlaps.columns[e] - first;
        double original = row[g];
        if (divisor > 0) {
          original = (power == 2 ? original * original : original) / divisor;
        } else {
          original = original * factor;
        }
        final_row[g] = (1 - lambda) * overlaps.values[e] + lambda * original;
      }
    }
  });
}

Tensor mix_distances(Tensor squared, std::optional<Tensor> maxima, Tensor offsets, Tensor columns,
                     Tensor values, int64_t first, double lambda, int64_t power, double scale) {
  STD_TORCH_CHECK(offsets.size(0) == squared.size(0) + 1,
                  "mix_distances: rows of distances and overlaps differ");
  STD_TORCH_CHECK(squared.size(1) <= 1 || squared.stride(1) == 1,
                  "mix_distances: rows must be contiguous");
  const Csr overlaps{offsets.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(),
                     values.const_data_ptr<double>()};
  const double* maximum = maxima.has_value() ? maxima->const_data_ptr<double>() : nullptr;
  Tensor result =
      torch::stable::new_empty(values, {squared.size(0), squared.size(1)}, ScalarType::Double);
  auto* out = result.mutable_data_ptr<double>();
  if (squared.scalar_type() == ScalarType::Double) {
    mix_rows<double>(squared, maximum, overlaps, first, lambda, power, scale, out);
  } else {
    STD_TORCH_CHECK(squared.scalar_type() == ScalarType::Float,
                    "mix_distances: distances must be float32 or float64");
    mix_rows<float>(squared, maximum, overlaps, first, lambda, power, scale, out);
  }
  return result;
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("reciprocal_sets", TORCH_BOX(&mmga::reciprocal_sets));
  m.impl("expand_sets", TORCH_BOX(&mmga::expand_sets));
  m.impl("listed_distances", TORCH_BOX(&mmga::listed_distances));
  m.impl("encode", TORCH_BOX(&mmga::encode));
  m.impl("average_rows", TORCH_BOX(&mmga::average_rows));
  m.impl("transpose_rows", TORCH_BOX(&mmga::transpose_rows));
  m.impl("jaccard_rows", TORCH_BOX(&mmga::jaccard_rows));
  m.impl("heavy_rows", TORCH_BOX(&mmga::heavy_rows));
  m.impl("near_rows", TORCH_BOX(&mmga::near_rows));
  m.impl("mirror_rows", TORCH_BOX(&mmga::mirror_rows));
  m.impl("mix_distances", TORCH_BOX(&mmga::mix_distances));
}
