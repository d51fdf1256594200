// Exact k nearest neighbours from tiles of distances: a vector compare with each item's threshold,
// then a bounded list. Bound by one read of the tile, which the caller keeps of cache size.
// mmga/ops/reference.py specifies every function.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "../common.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Entries compared before anything is looked at more closely: first these many, then in groups.
constexpr int64_t kLane = 64;
constexpr int64_t kGroup = 8;

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

// The candidate lists of all items. Offering to one item from one thread at a time is the caller's
// duty; the two passes over a tile split it by items.
struct Lists {
  int64_t* candidates;  // [N, slots]
  int32_t* counts;      // [N]
  float* thresholds;    // [N]
  float* maxima;        // [N]
  int64_t slots, k;

  void offer(int64_t item, float distance, int64_t index) const {
    int64_t* list = candidates + item * slots;
    list[counts[item]++] = pack(distance, index);
    if (counts[item] == slots) shrink(item);
  }
  void shrink(int64_t item) const {
    int64_t* list = candidates + item * slots;
    std::nth_element(list, list + k - 1, list + counts[item]);
    counts[item] = static_cast<int32_t>(k);
    thresholds[item] = distance_of(list[k - 1]);
  }
};

// Rows [begin, end) of the tile are items, its columns are others.
MMGA_VECTOR_CLONES
void offer_rows(const Lists& lists, const float* tile, int64_t stride, int64_t columns,
                int64_t first_item, int64_t first_other, bool triangle, int64_t begin,
                int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t item = first_item + r;
    const float* row = tile + r * stride;
    float reach[8] = {0};
    int64_t c = triangle ? std::min(r + 1, columns) : 0;
    for (; c < columns; c += kLane) {
      const int64_t length = std::min(kLane, columns - c);
      const float* part = row + c;
      const float threshold = lists.thresholds[item];
      int32_t any = 0;
      if (length == kLane) {
        for (int64_t t = 0; t < kLane; ++t) any |= part[t] <= threshold;
        for (int64_t t = 0; t < kLane; t += 8) {
          for (int64_t u = 0; u < 8; ++u)
            reach[u] = reach[u] < part[t + u] ? part[t + u] : reach[u];
        }
      } else {
        any = 1;
        for (int64_t t = 0; t < length; ++t) reach[0] = std::max(reach[0], part[t]);
      }
      if (!any) continue;
      for (int64_t low = 0; low < length; low += kGroup) {
        const int64_t high = std::min(low + kGroup, length);
        int32_t some = high - low < kGroup;
        if (!some) {
          for (int64_t t = 0; t < kGroup; ++t) some |= part[low + t] <= threshold;
        }
        if (!some) continue;
        for (int64_t t = low; t < high; ++t) {
          if (part[t] <= lists.thresholds[item]) lists.offer(item, part[t], first_other + c + t);
        }
      }
    }
    lists.maxima[item] = std::max(lists.maxima[item], *std::max_element(reach, reach + 8));
  }
}

// Columns [begin, end) of the tile are items, its rows are others.
MMGA_VECTOR_CLONES
void offer_columns(const Lists& lists, const float* tile, int64_t stride, int64_t rows,
                   int64_t first_item, int64_t first_other, bool triangle, int64_t begin,
                   int64_t end) {
  float* thresholds = lists.thresholds + first_item;
  float* maxima = lists.maxima + first_item;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = tile + r * stride;
    for (int64_t c = triangle ? std::max(begin, r + 1) : begin; c < end; c += kLane) {
      const int64_t length = std::min(kLane, end - c);
      const float* part = row + c;
      int32_t any = 0;
      if (length == kLane) {
        for (int64_t t = 0; t < kLane; ++t) any |= part[t] <= thresholds[c + t];
        for (int64_t t = 0; t < kLane; ++t) {
          maxima[c + t] = maxima[c + t] < part[t] ? part[t] : maxima[c + t];
        }
      } else {
        any = 1;
        for (int64_t t = 0; t < length; ++t) maxima[c + t] = std::max(maxima[c + t], part[t]);
      }
      if (!any) continue;
      for (int64_t low = 0; low < length; low += kGroup) {
        const int64_t high = std::min(low + kGroup, length);
        int32_t some = high - low < kGroup;
        if (!some) {
          for (int64_t t = low; t < low + kGroup; ++t) some |= part[t] <= thresholds[c + t];
        }
        if (!some) continue;
        for (int64_t t = low; t < high; ++t) {
          if (part[t] <= thresholds[c + t]) {
            lists.offer(first_item + c + t, part[t], first_other + r);
          }
        }
      }
    }
  }
}

MMGA_VECTOR_CLONES
void squared_distance_rows(float* tile, int64_t stride, int64_t columns, const float* row_term,
                           const float* column_term, bool cosine, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = tile + r * stride;
    const float own = row_term[r];
    if (cosine) {
      for (int64_t c = 0; c < columns; ++c) {
        const float d = 2 * (1 - (row[c] * own) * column_term[c]);
        row[c] = d > 0 ? d : 0;  // never -0, whose bits would order last
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        const float d = (own + column_term[c]) - 2 * row[c];
        row[c] = d > 0 ? d : 0;
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

void select_candidates(Tensor candidates, Tensor counts, Tensor thresholds, Tensor maxima,
                       Tensor tile, int64_t k, int64_t first_item, int64_t first_other,
                       bool transposed, bool triangle) {
  const int64_t rows = tile.size(0), columns = tile.size(1), stride = tile.stride(0);
  const int64_t slots = candidates.size(1);
  STD_TORCH_CHECK(slots > k && k >= 1, "select_candidates: needs k >= 1 and more than k slots");
  STD_TORCH_CHECK(columns <= 1 || tile.stride(1) == 1,
                  "select_candidates: the tile's columns must be contiguous");
  STD_TORCH_CHECK(first_item + (transposed ? columns : rows) <= candidates.size(0),
                  "select_candidates: the tile reaches past the last item");
  const Lists lists{candidates.mutable_data_ptr<int64_t>(),
                    counts.mutable_data_ptr<int32_t>(),
                    thresholds.mutable_data_ptr<float>(),
                    maxima.mutable_data_ptr<float>(),
                    slots,
                    k};
  const auto* values = tile.const_data_ptr<float>();
  torch::stable::parallel_for(0, transposed ? columns : rows, kLane,
                              [&](int64_t begin, int64_t end) {
                                const auto pass = transposed ? offer_columns : offer_rows;
                                pass(lists, values, stride, transposed ? rows : columns, first_item,
                                     first_other, triangle, begin, end);
                              });
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

// Sum of products in float64, eight interleaved accumulators and a fixed tree.
MMGA_VECTOR_CLONES
double product(const float* x, const float* y, int64_t d) {
  double sum[8] = {0};
  int64_t t = 0;
  for (; t + 8 <= d; t += 8) {
    for (int64_t u = 0; u < 8; ++u) {
      sum[u] += static_cast<double>(x[t + u]) * static_cast<double>(y[t + u]);
    }
  }
  for (int64_t u = 0; t + u < d; ++u) {
    sum[u] += static_cast<double>(x[t + u]) * static_cast<double>(y[t + u]);
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

Tensor pair_products(Tensor x, Tensor y, Tensor rows, Tensor columns) {
  const int64_t d = x.size(1), pairs = rows.size(0);
  STD_TORCH_CHECK(y.size(1) == d && columns.size(0) == pairs,
                  "pair_products: dimensions of x and y, or of rows and columns, differ");
  STD_TORCH_CHECK(x.is_contiguous() && y.is_contiguous(), "pair_products: x, y must be contiguous");
  Tensor result = torch::stable::new_empty(x, {pairs}, ScalarType::Double);
  const auto* left = x.const_data_ptr<float>();
  const auto* right = y.const_data_ptr<float>();
  const auto* i = rows.const_data_ptr<int64_t>();
  const auto* j = columns.const_data_ptr<int64_t>();
  auto* out = result.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, pairs, 64, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) out[p] = product(left + i[p] * d, right + j[p] * d, d);
  });
  return result;
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("squared_distances_", TORCH_BOX(&mmga::squared_distances_));
  m.impl("select_candidates", TORCH_BOX(&mmga::select_candidates));
  m.impl("nearest_in_rows", TORCH_BOX(&mmga::nearest_in_rows));
  m.impl("pair_products", TORCH_BOX(&mmga::pair_products));
}
