// Exact k nearest neighbours from tiles of inner products. A tile is visited once: distances are
// made in registers and compared with the thresholds of both their items, and the few that pass go
// to bounded lists. Bound by one read of the tile, which the caller keeps of cache size.
// mmga/ops/reference.py specifies every function.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bits.h"
#include "common.h"
#include "products.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Entries compared before anything is looked at more closely.
constexpr int64_t kLane = 64;
// Entries of a tile below which waking a thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 14;

// A candidate: the bits of a float >= 0, which order like the number, above the index.
inline int64_t pack(float distance, int64_t index) {
  int32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<int64_t>(bits) << 32 | index;
}

inline float distance_of(int64_t candidate) {
  const auto bits = static_cast<int32_t>(candidate >> 32);
  float distance;
  std::memcpy(&distance, &bits, sizeof distance);
  return distance;
}

// Leaves of a list its k smallest candidates and perhaps some more, all up to `bound`, and returns
// how many. Candidates differ (in their index), so that bisection ends; no branch depends on one.
__attribute__((always_inline)) inline int64_t shrink_list(int64_t* __restrict list, int64_t count,
                                                          int64_t k, int64_t* bound) {
  int64_t low = list[0], high = list[0];
  for (int64_t t = 1; t < count; ++t) {
    low = list[t] < low ? list[t] : low;
    high = list[t] > high ? list[t] : high;
  }
  // At least k candidates are <= high, fewer than k are < low.
  const int64_t enough = k + (count - k) / 4;
  for (int64_t within = count; within > enough && low < high;) {
    const int64_t middle = low + (high - low) / 2;
    int64_t number = 0;
    for (int64_t t = 0; t < count; ++t) number += list[t] <= middle;
    if (number < k) {
      low = middle + 1;
    } else {
      high = middle;
      within = number;
    }
  }
  int64_t left = 0;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t candidate = list[t];
    list[left] = candidate;
    left += candidate <= high;
  }
  *bound = high;
  return left;
}

// The candidate lists of all items. Offering to one item from one thread at a time is the caller's
// duty. A list that is full is shrunk at once, so that there is always room for one more.
struct Lists {
  int64_t* candidates;  // [N, slots]
  int32_t* counts;      // [N]
  float* thresholds;    // [N]
  float* maxima;        // [N]
  int64_t slots, k;

  // Whether the candidate passes is hard to predict: it is written anyhow, and counted if so.
  __attribute__((always_inline)) inline void offer(int64_t item, float distance,
                                                   int64_t index) const {
    int64_t* list = candidates + item * slots;
    const int32_t count = counts[item];
    list[count] = pack(distance, index);
    const int32_t next = count + (distance <= thresholds[item]);
    counts[item] = next;
    if (__builtin_expect(next == slots, 0)) {
      int64_t bound;
      counts[item] = static_cast<int32_t>(shrink_list(list, slots, k, &bound));
      thresholds[item] = distance_of(bound);
    }
  }
};

// A tile of inner products between items (its rows) and others (its columns), and what becomes of
// its distances.
struct Visit {
  Lists lists;
  const float* products;
  int64_t stride;
  const float* row_term;
  const float* column_term;
  int64_t first_item, first_other;
  bool cosine;
  // Each pair with item < other is offered to both; else every pair to the item alone.
  bool symmetric;
  float* kept;  // distances of the items before `kept_items` to those from there on, or null
  int64_t kept_items, kept_stride;
};

__attribute__((always_inline)) inline float squared_distance(float product, float own, float other,
                                                             bool cosine) {
  const float d = cosine ? 2 * (1 - (product * own) * other) : (own + other) - 2 * product;
  return d > 0 ? d : 0;  // never -0, whose bits would order last
}

// Eight floats: a vector that registers hold, or two of them.
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Masks __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(8)));
constexpr int64_t kLanes = 8;
static_assert(kLane == kLanes * kLanes);

__attribute__((always_inline)) inline void load(Floats& to, const float* from) {
  std::memcpy(&to, from, sizeof to);
}

// kLane entries of one row from column c on: their distances, both sides' maxima, and for each
// entry a bit that says whether one of its two thresholds lets it through: bit v of lane u is entry
// v * kLanes + u.
template <bool kCosine, bool kSymmetric>
__attribute__((always_inline)) inline void examine(const Visit& v, const float* product, int64_t r,
                                                   int64_t c, Floats* reach, float* distances,
                                                   Masks& near) {
  const Floats zero = {}, own = zero + v.row_term[r];
  const Floats mine = zero + v.lists.thresholds[v.first_item + r];
  const float* other = v.column_term + c;
  const float* theirs = v.lists.thresholds + v.first_other + c;
  float* maxima = v.lists.maxima + v.first_other + c;
  for (int64_t u = 0; u < kLane; u += kLanes) {
    Floats x, term;
    load(x, product + u);
    load(term, other + u);
    Floats d = kCosine ? 2 * (1 - (x * own) * term) : (own + term) - 2 * x;
    d = d > zero ? d : zero;  // never -0, whose bits would order last
    std::memcpy(distances + u, &d, sizeof d);
    Floats limit = mine;
    if (kSymmetric) {
      Floats threshold, largest;
      load(threshold, theirs + u);
      limit = threshold > mine ? threshold : mine;
      load(largest, maxima + u);
      largest = d > largest ? d : largest;
      std::memcpy(maxima + u, &largest, sizeof largest);
    }
    near |= (d <= limit) & (1 << (u / kLanes));
    Floats& part = reach[u / kLanes % 4];
    part = d > part ? d : part;
  }
}

// The same for what is left at the end of a row.
template <bool kCosine, bool kSymmetric>
__attribute__((always_inline)) inline void examine_some(const Visit& v, const float* product,
                                                        int64_t r, int64_t c, int64_t length,
                                                        float* reach, float* distances,
                                                        Masks& near) {
  const float mine = v.lists.thresholds[v.first_item + r];
  for (int64_t t = 0; t < length; ++t) {
    const int64_t other = v.first_other + c + t;
    const float d = squared_distance(product[t], v.row_term[r], v.column_term[c + t], kCosine);
    distances[t] = d;
    bool taken = d <= mine;
    if (kSymmetric) {
      taken |= d <= v.lists.thresholds[other];
      v.lists.maxima[other] = std::max(v.lists.maxima[other], d);
    }
    near[t % kLanes] |= taken << (t / kLanes);
    *reach = std::max(*reach, d);
  }
}

// Rows [row, row_end) and columns [column, column_end) of a tile, each entry once.
template <bool kCosine, bool kSymmetric>
__attribute__((always_inline)) inline void offer_block_body(const Visit& v, int64_t row,
                                                            int64_t row_end, int64_t column,
                                                            int64_t column_end) {
  const Lists& lists = v.lists;
  alignas(32) float d[kLane];
  for (int64_t r = row; r < row_end; ++r) {
    const int64_t item = v.first_item + r;
    const int64_t begin = kSymmetric ? std::max(column, item + 1 - v.first_other) : column;
    if (begin >= column_end) continue;  // it may be another thread's item
    Floats reach[4] = {};
    float farthest = 0;
    for (int64_t c = begin; c < column_end; c += kLane) {
      const int64_t length = std::min(kLane, column_end - c);
      const float* product = v.products + r * v.stride + c;
      Masks near = {};
      if (length == kLane) {
        examine<kCosine, kSymmetric>(v, product, r, c, reach, d, near);
      } else {
        examine_some<kCosine, kSymmetric>(v, product, r, c, length, &farthest, d, near);
      }
      if (v.kept != nullptr && item < v.kept_items) {
        const int64_t skipped = std::clamp<int64_t>(v.kept_items - v.first_other - c, 0, length);
        std::memcpy(v.kept + item * v.kept_stride + v.first_other + c + skipped - v.kept_items,
                    d + skipped, (length - skipped) * sizeof(float));
      }
      // Bit v of byte u is entry v * kLanes + u.
      const Bytes bytes = __builtin_convertvector(near, Bytes);
      uint64_t bits;
      std::memcpy(&bits, &bytes, sizeof bits);
      for (; bits != 0; bits &= bits - 1) {
        const int bit = __builtin_ctzll(bits);
        const int64_t t = bit % 8 * kLanes + bit / 8;
        const int64_t other = v.first_other + c + t;
        lists.offer(item, d[t], other);
        if (kSymmetric) lists.offer(other, d[t], item);
      }
    }
    for (const Floats& part : reach) {
      for (int64_t u = 0; u < kLanes; ++u) farthest = std::max(farthest, part[u]);
    }
    lists.maxima[item] = std::max(lists.maxima[item], farthest);
  }
}

MMGA_VECTOR_CLONES
void offer_block(const Visit& v, int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
  if (v.cosine && v.symmetric) {
    offer_block_body<true, true>(v, row, row_end, column, column_end);
  } else if (v.cosine) {
    offer_block_body<true, false>(v, row, row_end, column, column_end);
  } else if (v.symmetric) {
    offer_block_body<false, true>(v, row, row_end, column, column_end);
  } else {
    offer_block_body<false, false>(v, row, row_end, column, column_end);
  }
}

inline int32_t bits_of(float distance) {
  int32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return bits;
}

// A bound that k to about k + k / 4 of the distances do not exceed, or with ties some more, between
// `low` and `high`. All are bits of floats >= 0, which order like the numbers.
__attribute__((always_inline)) inline int32_t bound_of_row(const float* distances, int64_t count,
                                                           int64_t k, int32_t low, int32_t high) {
  for (int64_t within = count; within > k + k / 4 && low < high;) {
    const int32_t middle = low + (high - low) / 2;
    int32_t number = 0;
    for (int64_t t = 0; t < count; ++t) number += bits_of(distances[t]) <= middle;
    if (number < k) {
      low = middle + 1;
    } else {
      high = middle;
      within = number;
    }
  }
  return high;
}

MMGA_VECTOR_CLONES
void distances_above_diagonal(const Visit& v, int64_t size, int64_t begin, int64_t end,
                              float* square) {
  for (int64_t r = begin; r < end; ++r) {
    const float* product = v.products + r * v.stride;
    float* row = square + r * size;
    const float own = v.row_term[r];
    if (v.cosine) {
      for (int64_t c = r + 1; c < size; ++c) {
        row[c] = squared_distance(product[c], own, v.column_term[c], true);
      }
    } else {
      for (int64_t c = r + 1; c < size; ++c) {
        row[c] = squared_distance(product[c], own, v.column_term[c], false);
      }
    }
  }
}

// Offers each row of a square of distances, itself left out.
MMGA_VECTOR_CLONES
void offer_square_rows(const Visit& v, int64_t size, int64_t begin, int64_t end, float* square) {
  const Lists& lists = v.lists;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t item = v.first_item + r;
    float* row = square + r * size;
    const int32_t infinity = bits_of(std::numeric_limits<float>::infinity());
    row[r] = std::numeric_limits<float>::infinity();
    int32_t low = infinity, high = 0;  // of the finite ones
    for (int64_t c = 0; c < size; ++c) {
      const int32_t bits = bits_of(row[c]), finite = bits < infinity ? bits : 0;
      low = bits < low ? bits : low;
      high = finite > high ? finite : high;
    }
    const float farthest = distance_of(static_cast<int64_t>(high) << 32);
    lists.maxima[item] = std::max(lists.maxima[item], farthest);
    if (size > lists.k) {
      const int32_t bound = bound_of_row(row, size, lists.k, low, high);
      lists.thresholds[item] =
          std::min(lists.thresholds[item], distance_of(static_cast<int64_t>(bound) << 32));
    }
    const float threshold = lists.thresholds[item];
    for (int64_t c = 0; c < size; c += kLane) {
      uint8_t near[kLane] = {};
      const int64_t length = std::min(kLane, size - c);
      if (length == kLane) {
        for (int64_t t = 0; t < kLane; ++t) near[t] = row[c + t] <= threshold;
      } else {
        for (int64_t t = 0; t < length; ++t) near[t] = row[c + t] <= threshold;
      }
      for (uint64_t bits = bits_of_bytes(near); bits != 0; bits &= bits - 1) {
        const int64_t t = c + __builtin_ctzll(bits);
        if (t != r) lists.offer(item, row[t], v.first_other + t);
      }
    }
    const int64_t kept = std::max<int64_t>(v.kept_items - v.first_other, 0);
    if (v.kept != nullptr && item < v.kept_items && kept < size) {
      std::memcpy(v.kept + item * v.kept_stride + v.first_other + kept - v.kept_items, row + kept,
                  (size - kept) * sizeof(float));
    }
  }
}

// The tile of a run of items with itself. Every item meets all others of the run at once here, so
// that bounds on its k nearest are known before any is offered: later tiles then offer far fewer.
void offer_square(const Visit& v, int64_t size) {
  static thread_local std::vector<float> buffer;
  buffer.resize(size * size);
  float* square = buffer.data();
  torch::stable::parallel_for(0, size, kLane, [&](int64_t begin, int64_t end) {
    distances_above_diagonal(v, size, begin, end, square);
  });
  torch::stable::parallel_for(0, size, kLane, [&](int64_t begin, int64_t end) {
    constexpr int64_t kBlock = 16;  // entries of one cache line
    for (int64_t low = begin; low < end; low += kBlock) {
      for (int64_t left = 0; left < std::min(low + kBlock, end); left += kBlock) {
        for (int64_t r = low; r < std::min(low + kBlock, end); ++r) {
          for (int64_t c = left; c < std::min(left + kBlock, r); ++c) {
            square[r * size + c] = square[c * size + r];
          }
        }
      }
    }
  });
  torch::stable::parallel_for(0, size, kLane, [&](int64_t begin, int64_t end) {
    offer_square_rows(v, size, begin, end, square);
  });
}

MMGA_VECTOR_CLONES
void squared_distance_rows(float* tile, int64_t stride, int64_t columns, const float* row_term,
                           const float* column_term, bool cosine, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = tile + r * stride;
    const float own = row_term[r];
    if (cosine) {
      for (int64_t c = 0; c < columns; ++c) {
        row[c] = squared_distance(row[c], own, column_term[c], true);
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        row[c] = squared_distance(row[c], own, column_term[c], false);
      }
    }
  }
}

void squared_distances_(Tensor tile, Tensor row_term, Tensor column_term, bool cosine) {
  const int64_t rows = tile.size(0), columns = tile.size(1), stride = tile.stride(0);
  STD_TORCH_CHECK(row_term.size(0) == rows && column_term.size(0) == columns,
                  "squared_distances_: the terms do not fit the tile");
  STD_TORCH_CHECK(columns <= 1 || tile.stride(1) == 1,
                  "squared_distances_: the tile's columns must be contiguous");
  auto* values = tile.mutable_data_ptr<float>();
  const auto* own = row_term.const_data_ptr<float>();
  const auto* others = column_term.const_data_ptr<float>();
  torch::stable::parallel_for(0, rows, kLane, [&](int64_t begin, int64_t end) {
    squared_distance_rows(values, stride, columns, own, others, cosine, begin, end);
  });
}

void select_neighbours(Tensor candidates, Tensor counts, Tensor thresholds, Tensor maxima,
                       std::optional<Tensor> kept, Tensor products, Tensor row_term,
                       Tensor column_term, bool cosine, int64_t k, int64_t first_item,
                       int64_t first_other, bool symmetric) {
  const int64_t rows = products.size(0), columns = products.size(1);
  const int64_t items = candidates.size(0), slots = candidates.size(1);
  STD_TORCH_CHECK(slots > k && k >= 1, "select_neighbours: needs k >= 1 and more than k slots");
  STD_TORCH_CHECK(columns <= 1 || products.stride(1) == 1,
                  "select_neighbours: the tile's columns must be contiguous");
  STD_TORCH_CHECK(row_term.size(0) == rows && column_term.size(0) == columns,
                  "select_neighbours: the terms do not fit the tile");
  STD_TORCH_CHECK(first_item + rows <= items && (!symmetric || first_other + columns <= items),
                  "select_neighbours: the tile reaches past the last item");
  const bool keeps = kept.has_value();
  STD_TORCH_CHECK(!keeps || (symmetric && kept->size(0) + kept->size(1) == items &&
                             (kept->size(1) <= 1 || kept->stride(1) == 1)),
                  "select_neighbours: kept must be [Q, N - Q] with contiguous rows");
  const Visit visit{
      {candidates.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int32_t>(),
       thresholds.mutable_data_ptr<float>(), maxima.mutable_data_ptr<float>(), slots, k},
      products.const_data_ptr<float>(),
      products.stride(0),
      row_term.const_data_ptr<float>(),
      column_term.const_data_ptr<float>(),
      first_item,
      first_other,
      cosine,
      symmetric,
      keeps ? kept->mutable_data_ptr<float>() : nullptr,
      keeps ? kept->size(0) : 0,
      keeps ? kept->stride(0) : 0};
  if (symmetric && first_item == first_other && rows == columns) {
    offer_square(visit, rows);
    return;
  }
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  // Parts of the tile, one a thread at a time. A symmetric tile is cut both ways, and the parts of
  // one turn share neither rows nor columns, so that no list has two writers. (A tile across the
  // diagonal has items on both sides: one thread takes it.)
  const bool overlapping = symmetric && first_other < first_item + rows;
  const int64_t cuts =
      overlapping ? 1 : std::clamp<int64_t>(rows * columns / kEntriesPerThread, 1, threads);
  const int64_t turns = symmetric ? cuts : 1;
  const int64_t height = (rows + cuts - 1) / cuts;
  const int64_t width = ((columns + turns - 1) / turns + kLane - 1) / kLane * kLane;
  for (int64_t turn = 0; turn < turns; ++turn) {
    torch::stable::parallel_for(0, cuts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t column = (part + turn) % turns * width;
        offer_block(visit, std::min(part * height, rows), std::min((part + 1) * height, rows),
                    std::min(column, columns), std::min(column + width, columns));
      }
    });
  }
}

// Candidates up to which comparing each with each, by vectors, beats sorting.
constexpr int64_t kFewCandidates = 256;

// Writes the k smallest of a list in order. Candidates differ, so that each has a place of its own.
MMGA_VECTOR_CLONES void order_few(const int64_t* list, int64_t count, int64_t k, int32_t* index,
                                  float* distances) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t candidate = list[i];
    int64_t place = 0;
    for (int64_t j = 0; j < count; ++j) place += list[j] < candidate;
    if (place >= k) continue;
    index[place] = static_cast<int32_t>(candidate & 0x7fffffff);
    distances[place] = distance_of(candidate);
  }
}

std::tuple<Tensor, Tensor> ordered_candidates(Tensor candidates, Tensor counts, int64_t k) {
  const int64_t items = candidates.size(0), slots = candidates.size(1);
  STD_TORCH_CHECK(candidates.is_contiguous() && k >= 1 && k <= slots,
                  "ordered_candidates: candidates must be contiguous with 1 <= k <= S");
  Tensor index = torch::stable::new_empty(candidates, {items, k}, ScalarType::Int);
  Tensor distances = torch::stable::new_empty(candidates, {items, k}, ScalarType::Float);
  const auto* lists = candidates.const_data_ptr<int64_t>();
  const auto* held = counts.const_data_ptr<int32_t>();
  auto* out_index = index.mutable_data_ptr<int32_t>();
  auto* out_distances = distances.mutable_data_ptr<float>();
  std::atomic<bool> enough{true};
  torch::stable::parallel_for(0, items, kLane, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> list(slots);
    for (int64_t i = begin; i < end; ++i) {
      if (held[i] < k || held[i] > slots) {
        enough = false;
        continue;
      }
      if (held[i] <= kFewCandidates) {
        order_few(lists + i * slots, held[i], k, out_index + i * k, out_distances + i * k);
        continue;
      }
      std::copy(lists + i * slots, lists + i * slots + held[i], list.begin());
      int64_t bound;
      const int64_t left = shrink_list(list.data(), held[i], k, &bound);
      std::sort(list.begin(), list.begin() + left);
      for (int64_t t = 0; t < k; ++t) {
        out_index[i * k + t] = static_cast<int32_t>(list[t] & 0x7fffffff);
        out_distances[i * k + t] = distance_of(list[t]);
      }
    }
  });
  STD_TORCH_CHECK(enough, "ordered_candidates: an item has fewer than k candidates");
  return {index, distances};
}

// Fewer than k entries are numbers where this is false.
template <typename T>
bool nearest_of_row(const T* row, int64_t n, int64_t k, std::vector<std::pair<T, int32_t>>& list,
                    T* distances, int32_t* indices) {
  list.clear();
  const size_t slots = 2 * k + 16;
  T threshold = std::numeric_limits<T>::infinity();
  for (int64_t j = 0; j < n; ++j) {
    if (!(row[j] <= threshold)) continue;
    list.emplace_back(row[j], static_cast<int32_t>(j));
    if (list.size() == slots) {
      std::nth_element(list.begin(), list.begin() + k - 1, list.end());
      list.resize(k);
      threshold = list[k - 1].first;
    }
  }
  if (list.size() < static_cast<size_t>(k)) return false;
  std::partial_sort(list.begin(), list.begin() + k, list.end());
  for (int64_t t = 0; t < k; ++t) {
    distances[t] = list[t].first;
    indices[t] = list[t].second;
  }
  return true;
}

template <typename T>
void nearest_rows(const Tensor& distances, int64_t k, Tensor& nearest, Tensor& indices) {
  const int64_t n = distances.size(1), stride = distances.stride(0);
  const T* d = distances.const_data_ptr<T>();
  T* out = nearest.mutable_data_ptr<T>();
  auto* index = indices.mutable_data_ptr<int32_t>();
  std::atomic<bool> numbers{true};
  torch::stable::parallel_for(0, distances.size(0), 8, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<T, int32_t>> list;
    for (int64_t i = begin; i < end; ++i) {
      if (!nearest_of_row(d + i * stride, n, k, list, out + i * k, index + i * k)) numbers = false;
    }
  });
  STD_TORCH_CHECK(numbers, "nearest_in_rows: distances must not be NaN");
}

std::tuple<Tensor, Tensor> nearest_in_rows(Tensor distances, int64_t k) {
  STD_TORCH_CHECK(k >= 1 && k <= distances.size(1), "nearest_in_rows: needs 1 <= k <= N");
  STD_TORCH_CHECK(distances.stride(1) == 1 || distances.size(1) == 1,
                  "nearest_in_rows: rows must be contiguous");
  Tensor nearest = torch::stable::new_empty(distances, {distances.size(0), k});
  Tensor indices = torch::stable::new_empty(distances, {distances.size(0), k}, ScalarType::Int);
  if (distances.scalar_type() == ScalarType::Double) {
    nearest_rows<double>(distances, k, nearest, indices);
  } else {
    STD_TORCH_CHECK(distances.scalar_type() == ScalarType::Float,
                    "nearest_in_rows: distances must be float32 or float64");
    nearest_rows<float>(distances, k, nearest, indices);
  }
  return {nearest, indices};
}

Tensor pair_products(Tensor x, Tensor y, Tensor rows, Tensor columns) {
  const int64_t d = x.size(1), pairs = rows.size(0);
  STD_TORCH_CHECK(y.size(1) == d && columns.size(0) == pairs,
                  "pair_products: dimensions of x and y, or of rows and columns, differ");
  STD_TORCH_CHECK(
      x.is_contiguous() && y.is_contiguous() && rows.is_contiguous() && columns.is_contiguous(),
      "pair_products: x, y, rows and columns must be contiguous");
  Tensor result = torch::stable::new_empty(x, {pairs}, ScalarType::Double);
  const auto* left = x.const_data_ptr<float>();
  const auto* right = y.const_data_ptr<float>();
  const auto* i = rows.const_data_ptr<int64_t>();
  const auto* j = columns.const_data_ptr<int64_t>();
  auto* out = result.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, pairs, 64, [&](int64_t begin, int64_t end) {
    multiply_pairs(
        left, right, d, begin, end, [i](int64_t p) { return i[p]; },
        [j](int64_t p) { return j[p]; }, [out](int64_t p, double product) { out[p] = product; });
  });
  return result;
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("squared_distances_", TORCH_BOX(&mmga::squared_distances_));
  m.impl("select_neighbours", TORCH_BOX(&mmga::select_neighbours));
  m.impl("ordered_candidates", TORCH_BOX(&mmga::ordered_candidates));
  m.impl("nearest_in_rows", TORCH_BOX(&mmga::nearest_in_rows));
  m.impl("pair_products", TORCH_BOX(&mmga::pair_products));
}
