// Jaccard distances of sparse rows on the CPU, and final re-ranked distances, threads over rows.
// Bound by memory latency. mmga/ops/reference specifies every function.

#include "args/jaccard.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/dispatch.h"
#include "cpu/csr.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

constexpr int64_t kRowsPerChunk = 256;
constexpr int64_t kRowsPerTask = 32;
// Light entries of a row are at most this share of the least overlap; see prefix_rows in
// mmga/ops/reference. The larger, the fewer entries are heavy and the more overlaps are summed in
// vain.
constexpr double kLightShare = 0.35, kLighter = 0.7;

// One row's sums over all items, and marks on the blocks of sums that are not 0.
template <typename T>
class MarkedSums {
 public:
  static constexpr int64_t kSums = 64;  // of a mark

  explicit MarkedSums(int64_t n)
      : marks_((n + kSumsOfWord - 1) / kSumsOfWord * kMarks, 0),
        sums_(marks_.size() * kSums, T(0)) {}

  // Adds min(weight, value) to the sums of a column's rows, which ascend, from row `from` on.
  void add_minima(double weight, const int32_t* rows, const double* values, int64_t count,
                  int64_t from) {
    T* sums = sums_.data();  // local: a write to a byte might change members
    uint8_t* marks = marks_.data();
    const auto add = [&](int64_t f) {
      const int32_t row = rows[f];
      sums[row] += static_cast<T>(weight < values[f] ? weight : values[f]);
      marks[row / kSums] = 1;
    };
    if (from == 0) {
      for (int64_t f = 0; f < count; ++f) add(f);
    } else {
      for (int64_t f = count; f-- > 0 && rows[f] >= from;) add(f);
    }
  }

  // Calls take(item, sums) for kSums items from `item` on where one of them is marked, in ascending
  // order; take clears the sums.
  template <typename Take>
  MMGA_INLINE void drain(int64_t from, const Take& take) {
    T* sums = sums_.data();
    uint8_t* marks = marks_.data();
    const int64_t blocks = static_cast<int64_t>(marks_.size());
    for (int64_t first = from / kSumsOfWord * kMarks; first < blocks; first += kMarks) {
      uint64_t marked;
      std::memcpy(&marked, marks + first, sizeof marked);
      if (marked == 0) continue;
      for (int64_t block = first; block < first + kMarks; ++block) {
        if (marks[block] != 0) take(block * kSums, sums + block * kSums);
      }
      std::memset(marks + first, 0, sizeof marked);
    }
  }

 private:
  static constexpr int64_t kMarks = sizeof(uint64_t), kSumsOfWord = kSums * kMarks;

  std::vector<uint8_t> marks_;
  std::vector<T> sums_;
};

using Overlaps = MarkedSums<double>;

// Returns how many overlaps are >= least, and clears them.
MMGA_VECTOR_CLONES int64_t count_overlaps(Overlaps& overlaps, double least) {
  int64_t count = 0;
  overlaps.drain(0, [&](int64_t, double* sums) {
    for (int64_t t = 0; t < Overlaps::kSums; ++t) count += sums[t] >= least;
    std::memset(sums, 0, Overlaps::kSums * sizeof(double));
  });
  return count;
}

// Writes the distances of overlaps >= least in ascending order of their items, and clears the
// overlaps. There is room for `capacity`.
MMGA_VECTOR_CLONES void drain_overlaps(Overlaps& overlaps, double least, int64_t capacity,
                                       int32_t* columns, double* distances) {
  constexpr int64_t kBlock = 8;  // a cache line
  int64_t count = 0;
  overlaps.drain(0, [&](int64_t item, double* sums) {
    for (double* block = sums; block < sums + Overlaps::kSums; block += kBlock, item += kBlock) {
      double largest = 0.0;
      for (int64_t t = 0; t < kBlock; ++t) largest = largest < block[t] ? block[t] : largest;
      if (largest >= least) {
        double distance[kBlock];
        for (int64_t t = 0; t < kBlock; ++t) distance[t] = jaccard_distance(block[t]);
        if (count + kBlock <= capacity) {  // writes all, counts some: no branch to mispredict
          for (int64_t t = 0; t < kBlock; ++t) {
            columns[count] = static_cast<int32_t>(item + t);
            distances[count] = distance[t];
            count += block[t] >= least;
          }
        } else {
          for (int64_t t = 0; t < kBlock; ++t) {
            if (!(block[t] >= least)) continue;
            columns[count] = static_cast<int32_t>(item + t);
            distances[count++] = distance[t];
          }
        }
      }
      std::memset(block, 0, kBlock * sizeof(double));
    }
  });
}

// Returns the sum of the values below a limit.
MMGA_VECTOR_CLONES double sum_below(const double* values, int64_t count, double limit) {
  double sums[4] = {};
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    for (int64_t u = 0; u < 4; ++u) sums[u] += values[t + u] < limit ? values[t + u] : 0.0;
  }
  for (; t < count; ++t) sums[0] += values[t] < limit ? values[t] : 0.0;
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Returns the least weight of a row's heavy entries: all lighter ones sum to at most `rest`.
double least_weight(const double* values, int64_t count, double rest) {
  double weight = count > 0 ? *std::max_element(values, values + count) : 0.0;
  while (weight > 0 && sum_below(values, count, weight) > rest) weight *= kLighter;
  return weight;
}

SparseRows prefix_rows(const Tensor& offsets, const Tensor& columns, const Tensor& values,
                       double max_distance) {
  const Arguments args("prefix_rows", offsets);
  const Csr v = csr_rows(args, offsets, columns, values);  // whose columns are copied alone
  const double rest = kLightShare * wanted_overlap(args, max_distance);
  ChunkedRows rows(v.rows, kRowsPerChunk);
  rows.fill([] { return 0; },
            [&](int, int64_t i, auto& heavy, auto& weights) {
              const int64_t first = v.offsets[i], last = v.offsets[i + 1];
              const double least = least_weight(v.values + first, last - first, rest);
              for (int64_t e = first; e < last; ++e) {
                if (v.values[e] < least) continue;
                heavy.push_back(v.columns[e]);
                weights.push_back(v.values[e]);
              }
            });
  return {rows.offsets(offsets), rows.columns(offsets), rows.values(offsets)};
}

// Returns the overlap of a row with the one whose weights are given, added in the order of columns,
// as over the one's own entries.
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
  NearRow(const Csr& v, const Csr& heavy, const Csr& index, double least)
      : v_(v),
        heavy_(heavy),
        index_(index),
        least_(least),
        weights_(v.rows, 0.0),
        shared_(v.rows) {}

  // Appends the items from the one on in ascending order, and their distances.
  void list(int64_t item, std::vector<int32_t>& columns, std::vector<double>& distances) {
    const int64_t first = v_.offsets[item], last = v_.offsets[item + 1];
    for (int64_t e = first; e < last; ++e) weights_[v_.columns[e]] = v_.values[e];
    for (int64_t e = heavy_.offsets[item]; e < heavy_.offsets[item + 1]; ++e) {
      fetch(index_, heavy_.columns[e]);
    }
    for (int64_t e = heavy_.offsets[item]; e < heavy_.offsets[item + 1]; ++e) {
      const int64_t begin = index_.offsets[heavy_.columns[e]];
      const int64_t count = index_.offsets[heavy_.columns[e] + 1] - begin;
      shared_.add_minima(heavy_.values[e], index_.columns + begin, index_.values + begin, count,
                         item);
    }
    // Sums of so many float32 of one sign are off by no more than this share of them. Items that
    // are not marked have a sum of 0 and must not pass.
    const double share_off = std::min(0.5, static_cast<double>(last - first + 8) * 0x1p-23);
    const auto enough =
        std::max(static_cast<float>((1 - 2 * kLightShare) * least_ * (1 - share_off)),
                 std::numeric_limits<float>::min());
    near_.clear();
    shared_.drain(item, [&](int64_t from, float* sums) {
      for (uint64_t open = reaching(sums, enough); open != 0; open &= open - 1) {
        near_.push_back(static_cast<int32_t>(from + __builtin_ctzll(open)));
        fetch(v_, near_.back());
      }
    });
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
  // Prefetches a row that is read soon: rows are scattered, and waiting for each costs more than
  // the arithmetic on it.
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

  const Csr v_, heavy_, index_;
  const double least_;
  std::vector<double> weights_;  // of the one
  MarkedSums<float> shared_;     // by heavy entries of both
  std::vector<int32_t> near_;    // items that may be near the one
};

SparseRows jaccard_join(const Tensor& offsets, const Tensor& columns, const Tensor& values,
                        const Tensor& heavy_offsets, const Tensor& heavy_columns,
                        const Tensor& heavy_values, const Tensor& index_offsets,
                        const Tensor& index_rows, const Tensor& index_values, const Tensor& rows,
                        double max_distance) {
  const Arguments args("jaccard_join", offsets);
  const CsrNames heavy_names{"heavy_offsets", "heavy_columns", "heavy_values"};
  const CsrNames index_names{"index_offsets", "index_rows", "index_values"};
  const Csr v = csr_rows(args, offsets, columns, values);
  const Csr heavy = csr_rows(args, heavy_offsets, heavy_columns, heavy_values, v.rows, heavy_names);
  const Csr index = csr_rows(args, index_offsets, index_rows, index_values, v.rows, index_names);
  const auto* chosen = chosen_rows(args, rows, v);
  chosen_rows(args, rows, heavy, heavy_names);
  const double least = wanted_overlap(args, max_distance);
  ChunkedRows result(rows.numel(), kRowsPerTask);
  result.fill([&] { return NearRow(v, heavy, index, least); },
              [&](NearRow& near, int64_t r, auto& found, auto& distances) {
                near.list(chosen[r], found, distances);
              });
  return {result.offsets(offsets), result.columns(offsets), result.values(offsets)};
}

SparseRows symmetrise(const Tensor& offsets, const Tensor& columns, const Tensor& values) {
  const Arguments args("symmetrise", offsets);
  const Csr upper = csr_rows(args, offsets, columns, values);
  const int64_t n = upper.rows;
  Tensor all_offsets = torch::stable::new_zeros(offsets, {n + 1});
  auto* begin_of = data_of<int64_t>(all_offsets);
  for (int64_t i = 0; i < n; ++i) {
    begin_of[i + 1] += upper.offsets[i + 1] - upper.offsets[i];
    for (int64_t e = upper.offsets[i]; e < upper.offsets[i + 1]; ++e) {
      const int64_t j = upper.columns[e];
      args.require(j >= i && j < n, "columns: expected ", i, " to ", n - 1, ", found that row ", i,
                   " has column ", j);
      if (j > i) ++begin_of[j + 1];
    }
  }
  for (int64_t i = 0; i < n; ++i) begin_of[i + 1] += begin_of[i];
  const Tensor all_columns = new_tensor<int32_t>(columns, {begin_of[n]});
  const Tensor all_values = new_tensor<double>(values, {begin_of[n]});
  auto* to = data_of<int32_t>(all_columns);
  auto* to_value = data_of<double>(all_values);
  // Rows in their order write the entries below the diagonal in ascending columns.
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

// Writes final distances of one row, as if no item had an overlap.
template <typename T>
MMGA_VECTOR_CLONES void mix_row(const T* squared, int64_t gallery, double divisor, double factor,
                                const Mix& mix, double* out) {
  const double lambda = mix.lambda, rest = (1 - lambda) * 1.0;
  const int64_t power = mix.power;
  for (int64_t g = 0; g < gallery; ++g) {
    out[g] = rest + lambda * original_distance(squared[g], divisor, factor, power);
  }
}

struct Cpu {
  // Overlaps are computed twice: it costs less than rows of unknown length, which would have to be
  // copied, and no more memory than the result.
  static SparseRows jaccard_rows(const Tensor& like, const Csr& v, const Csr& inverted,
                                 const JaccardRows& wanted) {
    const auto each_row = [&](const auto& take) {
      const int64_t tasks = (wanted.count + kRowsPerTask - 1) / kRowsPerTask;
      share(tasks, [&](const auto& next) {
        Overlaps overlaps(v.rows);
        for (int64_t task = next(); task < tasks; task = next()) {
          const int64_t end = std::min(wanted.count, (task + 1) * kRowsPerTask);
          for (int64_t r = task * kRowsPerTask; r < end; ++r) {
            const int64_t i = wanted.chosen[r];
            for (int64_t e = v.offsets[i]; e < v.offsets[i + 1]; ++e) {
              const int64_t first = inverted.offsets[v.columns[e]];
              const int64_t count = inverted.offsets[v.columns[e] + 1] - first;
              overlaps.add_minima(v.values[e], inverted.columns + first, inverted.values + first,
                                  count, wanted.upper ? i : 0);
            }
            take(r, overlaps);
          }
        }
      });
    };
    const Tensor offsets = new_tensor<int64_t>(like, {wanted.count + 1});
    auto* begin_of = data_of<int64_t>(offsets);
    begin_of[0] = 0;
    each_row([&](int64_t r, Overlaps& overlaps) {
      begin_of[r + 1] = count_overlaps(overlaps, wanted.least);
    });
    for (int64_t r = 0; r < wanted.count; ++r) begin_of[r + 1] += begin_of[r];
    const int64_t total = begin_of[wanted.count];
    const Tensor columns = new_tensor<int32_t>(like, {total});
    const Tensor distances = new_tensor<double>(like, {total});
    auto* out = data_of<int32_t>(columns);
    auto* out_distances = data_of<double>(distances);
    expect_large(out, total * sizeof(int32_t));
    expect_large(out_distances, total * sizeof(double));
    each_row([&](int64_t r, Overlaps& overlaps) {
      drain_overlaps(overlaps, wanted.least, begin_of[r + 1] - begin_of[r], out + begin_of[r],
                     out_distances + begin_of[r]);
    });
    return {offsets, columns, distances};
  }

  template <typename T>
  static void mix_distances(const Tensor&, const MatrixView<T>& squared, const Csr& overlaps,
                            const Mix& mix, double* result) {
    const int64_t grain = rows_per_thread(squared.width, kGrain / 2);
    constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
    std::atomic<int64_t> outside{kNone};  // an item that is not of the gallery
    share_ranges(squared.rows, grain, [&](int64_t begin, int64_t end) {
      const auto [maxima, first, lambda, power, scale] = mix;  // local: results might alias them
      for (int64_t r = begin; r < end; ++r) {
        // No maximum: d is scaled. A maximum of 0: all d are 0, and so are the results.
        double divisor = maxima == nullptr ? 0.0 : maxima[r];
        if (power == 2) divisor = divisor * divisor;
        const double factor = maxima == nullptr ? scale : 0.0;
        const T* row = squared.row(r);
        double* final_row = result + r * squared.width;
        mix_row(row, squared.width, divisor, factor, mix, final_row);
        for (int64_t e = overlaps.offsets[r]; e < overlaps.offsets[r + 1]; ++e) {
          const int64_t g = overlaps.columns[e] - first;
          if (static_cast<uint64_t>(g) >= static_cast<uint64_t>(squared.width)) {
            outside = overlaps.columns[e];
            continue;
          }
          const double original = original_distance(row[g], divisor, factor, power);
          final_row[g] = (1 - lambda) * overlaps.values[e] + lambda * original;
        }
      }
    });
    STD_TORCH_CHECK(outside == kNone, "mix_distances: columns: expected ", mix.first, " to ",
                    mix.first + squared.width - 1, ", found ", outside);
  }
};

void take_overlaps_(Tensor values, const Tensor& begin, const Tensor& end, const Tensor& item,
                    const Tensor& jaccard, const Tensor& shift, int64_t first) {
  const Arguments args("take_overlaps_", values);
  auto* numbers = args.output<float>(values, "values", {kAny, kAny});
  const int64_t rows = values.size(0), width = values.size(1), pairs = item.numel();
  const auto* begins = args.input<int64_t>(begin, "begin", {rows});
  const auto* ends = args.input<int64_t>(end, "end", {rows});
  const auto* items = args.input<int64_t>(item, "item", {kAny});
  const auto* distances = args.input<double>(jaccard, "jaccard", {pairs});
  const auto* shifts = args.input<double>(shift, "shift", {rows});
  for (int64_t r = 0; r < rows; ++r) {
    args.range("begin", begins[r], 0, pairs);
    args.range("end", ends[r], begins[r], pairs);
  }
  constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  std::atomic<int64_t> outside{kNone};  // an item that is not of the tile
  share_ranges(rows, rows_per_thread(width), [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      const double most = shifts[r];
      float* row = numbers + r * width;
      for (int64_t e = begins[r]; e < ends[r]; ++e) {
        const int64_t column = items[e] - first;
        if (static_cast<uint64_t>(column) >= static_cast<uint64_t>(width)) {
          outside = items[e];
          continue;
        }
        row[column] += static_cast<float>((distances[e] - 1) * most);
      }
    }
  });
  args.require(outside == kNone, "item: expected ", first, " to ", first + width - 1, ", found ",
               outside.load());
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("prefix_rows", TORCH_BOX(&mmga::prefix_rows));
  m.impl("jaccard_join", TORCH_BOX(&mmga::jaccard_join));
  m.impl("symmetrise", TORCH_BOX(&mmga::symmetrise));
  m.impl("jaccard_rows", TORCH_BOX(&mmga::jaccard_rows<mmga::Cpu>));
  m.impl("take_overlaps_", TORCH_BOX(&mmga::take_overlaps_));
  m.impl("mix_distances", TORCH_BOX(&mmga::mix_distances<mmga::Cpu>));
}
