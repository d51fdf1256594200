// Exact k nearest neighbours from tiles of inner products. A tile is read once: distances are made
// in registers and compared with the thresholds of both their items, and the few that pass are
// inserted into bounded lists. Bound by one read of the tile, which callers choose of cache size.
// mmga/ops/reference specifies every function.

#include "args/knn.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "common/dispatch.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Entries of a row per SIMD compare block.
constexpr int64_t kBlock = 64;
// Entries of a tile below which another thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 14;

// Shrinks a list to its k smallest candidates and perhaps some more, all up to `bound`, and returns
// how many. Candidates differ (in their index), so that bisection ends; no branch depends on one.
MMGA_INLINE int64_t shrink_list(int64_t* __restrict list, int64_t count, int64_t k,
                                int64_t* bound) {
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

// Inserts a candidate into an item's list; one thread inserts into a list at a time. Whether the
// candidate passes is hard to predict: it is written anyhow, and counted if so. A list that is full
// is shrunk at once, so that there is always room for one more.
MMGA_INLINE void insert(const TileUpdate& u, int64_t item, float distance, int64_t index) {
  int64_t* list = u.candidates + item * u.slots;
  const int32_t count = u.counts[item];
  list[count] = pack(distance, index);
  const int32_t next = count + (distance <= u.thresholds[item]);
  u.counts[item] = next;
  if (__builtin_expect(next == u.slots, 0)) {
    int64_t bound;
    u.counts[item] = static_cast<int32_t>(shrink_list(list, u.slots, u.k, &bound));
    u.thresholds[item] = distance_of(bound);
  }
}

// Eight floats: a vector register, or two of them.
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Masks __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(8)));
constexpr int64_t kLanes = 8;
static_assert(kBlock == kLanes * kLanes);

MMGA_INLINE void load(Floats& to, const float* from) { std::memcpy(&to, from, sizeof to); }

// Computes the distances of kBlock entries of one row from column c on, both sides' maxima, and for
// each entry a bit that is set where the distance passes one of its two thresholds: bit v of lane u
// is entry v * kLanes + u.
template <bool kCosine, bool kSymmetric>
MMGA_INLINE void examine(const TileUpdate& u, const float* product, int64_t r, int64_t c,
                         Floats* reach, float* distances, Masks& near) {
  const Floats zero = {}, own = zero + u.item_term[r];
  const Floats mine = zero + u.thresholds[u.first_item + r];
  const float* other = u.other_term + c;
  const float* theirs = u.thresholds + u.first_other + c;
  float* maxima = u.maxima + u.first_other + c;
  for (int64_t t = 0; t < kBlock; t += kLanes) {
    Floats x, term;
    load(x, product + t);
    load(term, other + t);
    Floats d = kCosine ? 2 * (1 - (x * own) * term) : (own + term) - 2 * x;
    d = d > zero ? d : zero;  // never -0, whose bits would order last
    std::memcpy(distances + t, &d, sizeof d);
    Floats limit = mine;
    if (kSymmetric) {
      Floats threshold, largest;
      load(threshold, theirs + t);
      limit = threshold > mine ? threshold : mine;
      load(largest, maxima + t);
      largest = d > largest ? d : largest;
      std::memcpy(maxima + t, &largest, sizeof largest);
    }
    near |= (d <= limit) & (1 << (t / kLanes));
    Floats& part = reach[t / kLanes % 4];
    part = d > part ? d : part;
  }
}

// The same for the entries at the end of a row.
template <bool kCosine, bool kSymmetric>
MMGA_INLINE void examine_some(const TileUpdate& u, const float* product, int64_t r, int64_t c,
                              int64_t length, float* reach, float* distances, Masks& near) {
  const float mine = u.thresholds[u.first_item + r];
  for (int64_t t = 0; t < length; ++t) {
    const int64_t other = u.first_other + c + t;
    const float d = squared_distance(product[t], u.item_term[r], u.other_term[c + t], kCosine);
    distances[t] = d;
    bool passes = d <= mine;
    if (kSymmetric) {
      passes |= d <= u.thresholds[other];
      u.maxima[other] = std::max(u.maxima[other], d);
    }
    near[t % kLanes] |= passes << (t / kLanes);
    *reach = std::max(*reach, d);
  }
}

// Stores distances of an item to the others from `column` on, from those that are kept.
MMGA_INLINE void keep(const TileUpdate& u, int64_t item, int64_t column, const float* distances,
                      int64_t length) {
  if (u.kept == nullptr || item >= u.kept_items) return;
  const int64_t other = u.first_other + column;
  const int64_t skipped = std::clamp<int64_t>(u.kept_items - other, 0, length);
  std::memcpy(u.kept + item * u.kept_step + other + skipped - u.kept_items, distances + skipped,
              (length - skipped) * sizeof(float));
}

// Inserts rows [row, row_end) and columns [column, column_end) of a tile, each entry once.
template <bool kCosine, bool kSymmetric>
MMGA_INLINE void insert_block_body(const TileUpdate& u, int64_t row, int64_t row_end,
                                   int64_t column, int64_t column_end) {
  alignas(32) float d[kBlock];
  for (int64_t r = row; r < row_end; ++r) {
    const int64_t item = u.first_item + r;
    const int64_t begin = kSymmetric ? std::max(column, item + 1 - u.first_other) : column;
    if (begin >= column_end) continue;  // it may be another thread's item
    Floats reach[4] = {};
    float farthest = 0;
    for (int64_t c = begin; c < column_end; c += kBlock) {
      const int64_t length = std::min(kBlock, column_end - c);
      const float* product = u.products + r * u.item_step + c;
      Masks near = {};
      if (length == kBlock) {
        examine<kCosine, kSymmetric>(u, product, r, c, reach, d, near);
      } else {
        examine_some<kCosine, kSymmetric>(u, product, r, c, length, &farthest, d, near);
      }
      keep(u, item, c, d, length);
      // Bit v of byte t is entry v * kLanes + t.
      const Bytes bytes = __builtin_convertvector(near, Bytes);
      uint64_t bits;
      std::memcpy(&bits, &bytes, sizeof bits);
      for (; bits != 0; bits &= bits - 1) {
        const int bit = __builtin_ctzll(bits);
        const int64_t t = bit % 8 * kLanes + bit / 8;
        const int64_t other = u.first_other + c + t;
        insert(u, item, d[t], other);
        if (kSymmetric) insert(u, other, d[t], item);
      }
    }
    for (const Floats& part : reach) {
      for (int64_t lane = 0; lane < kLanes; ++lane) farthest = std::max(farthest, part[lane]);
    }
    u.maxima[item] = std::max(u.maxima[item], farthest);
  }
}

MMGA_VECTOR_CLONES void insert_block(const TileUpdate& u, int64_t row, int64_t row_end,
                                     int64_t column, int64_t column_end) {
  if (u.cosine && u.symmetric) {
    insert_block_body<true, true>(u, row, row_end, column, column_end);
  } else if (u.cosine) {
    insert_block_body<true, false>(u, row, row_end, column, column_end);
  } else if (u.symmetric) {
    insert_block_body<false, true>(u, row, row_end, column, column_end);
  } else {
    insert_block_body<false, false>(u, row, row_end, column, column_end);
  }
}

// Returns a bound that k to about k + k / 4 of the distances do not exceed, or with ties some more,
// between `low` and `high`. All are bits of floats >= 0, which order like the numbers.
MMGA_INLINE int32_t bound_of_row(const float* distances, int64_t count, int64_t k, int32_t low,
                                 int32_t high) {
  for (int64_t within = count; within > k + k / 4 && low < high;) {
    const int32_t middle = low + (high - low) / 2;
    int32_t number = 0;
    for (int64_t t = 0; t < count; ++t) number += bit_cast<int32_t>(distances[t]) <= middle;
    if (number < k) {
      low = middle + 1;
    } else {
      high = middle;
      within = number;
    }
  }
  return high;
}

// Writes squared distances of products of one row; the constants take the choice out of the loop.
MMGA_INLINE void write_distances(const float* products, float own, const float* other_term,
                                 bool cosine, int64_t begin, int64_t end, float* to) {
  if (cosine) {
    for (int64_t c = begin; c < end; ++c) {
      to[c] = squared_distance(products[c], own, other_term[c], true);
    }
  } else {
    for (int64_t c = begin; c < end; ++c) {
      to[c] = squared_distance(products[c], own, other_term[c], false);
    }
  }
}

MMGA_VECTOR_CLONES void distances_above_diagonal(const TileUpdate& u, int64_t begin, int64_t end,
                                                 float* square) {
  for (int64_t r = begin; r < end; ++r) {
    write_distances(u.products + r * u.item_step, u.item_term[r], u.other_term, u.cosine, r + 1,
                    u.items, square + r * u.items);
  }
}

MMGA_VECTOR_CLONES void squared_distance_rows(const ProductTile& tile, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* row = tile.values + r * tile.stride;
    write_distances(row, tile.row_term[r], tile.column_term, tile.cosine, 0, tile.columns, row);
  }
}

// Inserts each row of a square of distances, but for its diagonal.
MMGA_VECTOR_CLONES void insert_square_rows(const TileUpdate& u, int64_t begin, int64_t end,
                                           float* square) {
  const int64_t size = u.items;
  const int32_t infinity = bit_cast<int32_t>(std::numeric_limits<float>::infinity());
  for (int64_t r = begin; r < end; ++r) {
    const int64_t item = u.first_item + r;
    float* row = square + r * size;
    row[r] = std::numeric_limits<float>::infinity();
    int32_t low = infinity, high = 0;  // of the finite ones
    for (int64_t c = 0; c < size; ++c) {
      const int32_t bits = bit_cast<int32_t>(row[c]), finite = bits < infinity ? bits : 0;
      low = bits < low ? bits : low;
      high = finite > high ? finite : high;
    }
    u.maxima[item] = std::max(u.maxima[item], bit_cast<float>(high));
    if (size > u.k) {
      const int32_t bound = bound_of_row(row, size, u.k, low, high);
      u.thresholds[item] = std::min(u.thresholds[item], bit_cast<float>(bound));
    }
    const float threshold = u.thresholds[item];
    for (int64_t c = 0; c < size; c += kBlock) {
      uint8_t near[kBlock] = {};
      const int64_t length = std::min(kBlock, size - c);
      if (length == kBlock) {
        for (int64_t t = 0; t < kBlock; ++t) near[t] = row[c + t] <= threshold;
      } else {
        for (int64_t t = 0; t < length; ++t) near[t] = row[c + t] <= threshold;
      }
      for (uint64_t bits = bits_of_bytes(near); bits != 0; bits &= bits - 1) {
        const int64_t t = c + __builtin_ctzll(bits);
        if (t != r) insert(u, item, row[t], u.first_other + t);
      }
    }
    keep(u, item, 0, row, size);
  }
}

// Inserts the tile of a run of items with itself. Every item meets all others of the run at once
// here, so that bounds on its k nearest are known before any is inserted: later tiles then insert
// far fewer.
void insert_square(const TileUpdate& u) {
  static thread_local std::vector<float> buffer;
  const int64_t size = u.items;
  buffer.resize(size * size);
  float* square = buffer.data();
  share_ranges(size, kBlock, [&](int64_t begin, int64_t end) {
    distances_above_diagonal(u, begin, end, square);
  });
  share_ranges(size, kBlock, [&](int64_t begin, int64_t end) {
    constexpr int64_t kLine = 16;  // entries of one cache line
    for (int64_t low = begin; low < end; low += kLine) {
      for (int64_t left = 0; left < std::min(low + kLine, end); left += kLine) {
        for (int64_t r = low; r < std::min(low + kLine, end); ++r) {
          for (int64_t c = left; c < std::min(left + kLine, r); ++c) {
            square[r * size + c] = square[c * size + r];
          }
        }
      }
    }
  });
  share_ranges(size, kBlock,
               [&](int64_t begin, int64_t end) { insert_square_rows(u, begin, end, square); });
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

// Writes the k smallest entries of a row; returns false where fewer than k are numbers.
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

struct Cpu {
  static void squared_distances_(const Tensor&, const ProductTile& tile) {
    share_ranges(tile.rows, kBlock,
                 [&](int64_t begin, int64_t end) { squared_distance_rows(tile, begin, end); });
  }

  static void select_neighbours(const Tensor&, const TileUpdate& u) {
    if (u.symmetric && u.first_item == u.first_other && u.items == u.others) {
      insert_square(u);
      return;
    }
    const int64_t rows = u.items, columns = u.others;
    const int64_t threads = kernel_threads();
    // Parts of the tile, one a thread at a time. A symmetric tile is cut both ways, and the parts
    // of one turn share neither rows nor columns, so that no list has two writers. (A tile across
    // the diagonal has items on both sides: one thread takes it.)
    const bool overlapping = u.symmetric && u.first_other < u.first_item + rows;
    const int64_t cuts =
        overlapping ? 1 : std::clamp<int64_t>(rows * columns / kEntriesPerThread, 1, threads);
    const int64_t turns = u.symmetric ? cuts : 1;
    const int64_t height = (rows + cuts - 1) / cuts;
    const int64_t width = ((columns + turns - 1) / turns + kBlock - 1) / kBlock * kBlock;
    for (int64_t turn = 0; turn < turns; ++turn) {
      share(cuts, [&](const auto& next) {
        for (int64_t part = next(); part < cuts; part = next()) {
          const int64_t column = (part + turn) % turns * width;
          insert_block(u, std::min(part * height, rows), std::min((part + 1) * height, rows),
                       std::min(column, columns), std::min(column + width, columns));
        }
      });
    }
  }

  static void ordered_candidates(const Tensor&, const CandidateLists& lists, int64_t k,
                                 int32_t* index, float* distances) {
    const int64_t slots = lists.slots;
    std::atomic<int64_t> wrong{k};  // a count that is not from k to the slots
    share_ranges(lists.items, kBlock, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> sorted(slots);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t* list = lists.candidates + i * slots;
        const int32_t count = lists.counts[i];
        if (count < k || count > slots) {
          wrong = count;
          continue;
        }
        if (count <= kFewCandidates) {
          order_few(list, count, k, index + i * k, distances + i * k);
          continue;
        }
        std::copy(list, list + count, sorted.begin());
        int64_t bound;
        const int64_t left = shrink_list(sorted.data(), count, k, &bound);
        std::sort(sorted.begin(), sorted.begin() + left);
        for (int64_t t = 0; t < k; ++t) {
          index[i * k + t] = static_cast<int32_t>(sorted[t] & 0x7fffffff);
          distances[i * k + t] = distance_of(sorted[t]);
        }
      }
    });
    STD_TORCH_CHECK(wrong == k, "ordered_candidates: counts: expected ", k, " to ", slots,
                    ", found ", wrong);
  }

  template <typename T>
  static void nearest_in_rows(const Tensor&, const MatrixView<T>& distances, int64_t k, T* nearest,
                              int32_t* index) {
    std::atomic<bool> numbers{true};
    share_ranges(distances.rows, 8, [&](int64_t begin, int64_t end) {
      std::vector<std::pair<T, int32_t>> list;
      for (int64_t i = begin; i < end; ++i) {
        const bool found = nearest_of_row(distances.row(i), distances.width, k, list,
                                          nearest + i * k, index + i * k);
        if (!found) numbers = false;
      }
    });
    STD_TORCH_CHECK(numbers, "nearest_in_rows: distances: expected numbers, found NaN");
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("squared_distances_", TORCH_BOX(&mmga::squared_distances_<mmga::Cpu>));
  m.impl("select_neighbours", TORCH_BOX(&mmga::select_neighbours<mmga::Cpu>));
  m.impl("ordered_candidates", TORCH_BOX(&mmga::ordered_candidates<mmga::Cpu>));
  m.impl("nearest_in_rows", TORCH_BOX(&mmga::nearest_in_rows<mmga::Cpu>));
}
