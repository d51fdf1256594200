// The candidates for the nearest items of each row, in one look at all pairs: products of 8-bit
// rows are compared with a row's limit where they are computed, and what they leave is compared by
// products of 16-bit rows. mmga/ops/reference specifies the function.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "args/certified.h"
#include "common/dispatch.h"
#include "cpu/int8_products.h"
#include "cpu/keys.h"
#include "cpu/placed_rows.h"
#include "cpu/products.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Bounds on the error of the keys of rows or of columns.
template <typename T>
struct Error {
  const T* radius;
  const T* slack;
};

// A candidate and the bounds of its key.
struct Candidate {
  int32_t item;
  float low, high;
};
static_assert(sizeof(Candidate) == 3 * sizeof(int32_t));

// Returns how many values are at most `limit`.
MMGA_VECTOR_CLONES int64_t count_within(const float* values, int64_t count, float limit) {
  int32_t within = 0;
  for (int64_t i = 0; i < count; ++i) within += values[i] <= limit;
  return within;
}

// Copies the upper bounds of candidates to `to` and returns the least and the largest.
MMGA_VECTOR_CLONES std::pair<float, float> upper_bounds(const Candidate* from, int64_t count,
                                                        float* to) {
  float least = std::numeric_limits<float>::infinity(), most = -least;
  for (int64_t i = 0; i < count; ++i) to[i] = from[i].high;
  for (int64_t i = 0; i < count; ++i) {
    least = to[i] < least ? to[i] : least;
    most = to[i] > most ? to[i] : most;
  }
  return {least, most};
}

// Returns a value that at least `rank` of some values do not exceed, near the `rank`-th least,
// given the least and the largest: halving their range finds it sooner than sorting them.
float limit_of(const float* values, int64_t count, int64_t rank, float low, float high) {
  constexpr int kHalvings = 16;
  for (int i = 0; i < kHalvings; ++i) {
    const float middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) break;
    const int64_t within = count_within(values, count, middle);
    (within < rank ? low : high) = middle;
    if (within == rank) break;
  }
  return high;
}

// How many candidates of a row are kept after a share of all columns. Where columns come in random
// order, a share of the k nearest is among those seen, and hardly ever many more: a limit at their
// number is far below that of the k-th. Rows for which it was too low are found in the end.
class KeptRanks {
 public:
  // `total`: columns in random order; 0: in any order, and k are kept.
  KeptRanks(int64_t k, int64_t total) : k_(k), total_(total) {}

  int64_t after(int64_t seen) const {
    if (seen >= total_) return k_;
    constexpr double kDeviations = 3.7, kFew = 2;  // of a Poisson distribution's tail of 1e-4
    const double mean = static_cast<double>(k_) * seen / total_;
    return std::min(k_, static_cast<int64_t>(mean + kDeviations * std::sqrt(mean) + kFew));
  }

 private:
  int64_t k_, total_;
};

constexpr int32_t kLost = -1;  // the count of a list that had no room for a candidate

// Lists of candidates, [lists, slots]. Only what may be within a list's limit is kept.
class CandidateLists {
 public:
  // `prefix` is that of the arguments' names.
  CandidateLists(const Arguments& args, const std::string& prefix, const Tensor& candidates,
                 const Tensor& counts, const Tensor& limits, int64_t lists, int64_t k)
      : candidates_(reinterpret_cast<Candidate*>(
            args.output<int32_t>(candidates, (prefix + "candidates").c_str(), {lists, kAny, 3}))),
        counts_(args.output<int32_t>(counts, (prefix + "counts").c_str(), {lists})),
        limits_(args.output<float>(limits, (prefix + "limits").c_str(), {lists})),
        slots_(candidates.size(1)) {
    args.range("k", k, 1, slots_ - 1);
    for (int64_t list = 0; list < lists; ++list) {
      args.range((prefix + "counts").c_str(), counts_[list], kLost, slots_ - 1);
    }
  }

  // The limit; below all keys where the list is lost.
  float limit(int64_t list) const {
    return counts_[list] == kLost ? -std::numeric_limits<float>::infinity() : limits_[list];
  }

  // Appends a candidate if it is within the limit, of which the first `rank` are surely kept. A
  // list without room for all of them is lost.
  void add(int64_t list, const Candidate& candidate, int64_t rank, std::vector<float>& scratch) {
    if (counts_[list] == kLost || !(candidate.low <= limits_[list])) return;
    candidates_[list * slots_ + counts_[list]++] = candidate;
    if (counts_[list] < std::min(slots_, rank + std::max(kLeastSpare, rank / 2))) return;
    prune(list, rank, scratch);
    if (counts_[list] == slots_) counts_[list] = kLost;
  }

  // Lowers the limit to one that is at least the `rank`-th least key of some columns.
  void lower(int64_t list, float limit) { limits_[list] = std::min(limits_[list], limit); }

  // Lowers the limit to about the `rank`-th least upper bound and drops the candidates above it.
  void prune(int64_t list, int64_t rank, std::vector<float>& scratch) {
    const int64_t count = counts_[list];
    if (count < rank) return;
    Candidate* candidates = candidates_ + list * slots_;
    scratch.resize(count);
    const auto [least, most] = upper_bounds(candidates, count, scratch.data());
    lower(list, limit_of(scratch.data(), count, rank, least, most));
    const float limit = limits_[list];
    int64_t left = 0;
    for (int64_t s = 0; s < count; ++s) {
      const Candidate candidate = candidates[s];
      candidates[left] = candidate;
      left += candidate.low <= limit;
    }
    counts_[list] = static_cast<int32_t>(left);
  }

 private:
  static constexpr int64_t kLeastSpare = 8;  // candidates beyond the rank with which it is worth
                                             // while to prune

  Candidate* candidates_;
  int32_t* counts_;
  float* limits_;
  int64_t slots_;
};

// Rows and a panel of products, what makes keys of them, and which keys of each row are wanted.
struct PanelRows {
  const int32_t* sums;  // [count, 64]
  const uint32_t* excess;
  int64_t count, metric;
  const float* unit;
  const float* term;
  const float* width;
  const float* near;
  const float* far;
  const float* column_unit;
  const float* column_term;
  const float* column_near;
  const float* column_far;
};

// Writes for each row a bit for each column of the panel whose key may be at most `near` of one of
// them, or at least `far`.
typedef void (*FindWanted)(const PanelRows& rows, uint64_t* bits);

MMGA_VECTOR_CLONES void find_wanted_plain(const PanelRows& rows, uint64_t* bits) {
  using V = Vector<float>::type;
  using M = Vector<float>::mask;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  typedef uint32_t Sums __attribute__((vector_size(kVectorBytes)));
  for (int64_t r = 0; r < rows.count; ++r) {
    M wanted[kPanel / kLanes];
    M any = M{};
    for (int64_t v = 0; v < kPanel / kLanes; ++v) {
      Sums sums;
      V unit, term, key, near, far;
      load(sums, rows.sums + r * kPanel + v * kLanes);
      load(unit, rows.column_unit + v * kLanes);
      load(term, rows.column_term + v * kLanes);
      load(near, rows.column_near + v * kLanes);
      load(far, rows.column_far + v * kLanes);
      const V own_near = V{} + rows.near[r], own_far = V{} + rows.far[r];
      near = near > own_near ? near : own_near;
      far = far < own_far ? far : own_far;
      const V products = __builtin_convertvector(reinterpret_cast<M>(sums - rows.excess[r]), V);
      make_key<float, V>(rows.metric, rows.term[r], term, (products * rows.unit[r]) * unit, key);
      wanted[v] = (key - rows.width[r] <= near) | (key + rows.width[r] >= far);
      any |= wanted[v];
    }
    bits[r] = any_lane(any) ? bits_of_masks(wanted) : 0;
  }
}

#if MMGA_X86_CLONES
// The same with comparisons that are bits at once.
__attribute__((target("avx512f"))) inline void find_wanted_512(const PanelRows& rows,
                                                               uint64_t* bits) {
  constexpr int kLanes = 16;
  constexpr __mmask16 kAll = 0xFFFF;  // GCC 12 warns of the forms without a mask
  __m512 units[kPanel / kLanes], terms[kPanel / kLanes];
  __m512 column_near[kPanel / kLanes], column_far[kPanel / kLanes];
#pragma GCC unroll 4
  for (int v = 0; v < kPanel / kLanes; ++v) {
    units[v] = _mm512_loadu_ps(rows.column_unit + v * kLanes);
    terms[v] = _mm512_loadu_ps(rows.column_term + v * kLanes);
    column_near[v] = _mm512_loadu_ps(rows.column_near + v * kLanes);
    column_far[v] = _mm512_loadu_ps(rows.column_far + v * kLanes);
  }
  for (int64_t r = 0; r < rows.count; ++r) {
    const __m512i excess = _mm512_set1_epi32(static_cast<int32_t>(rows.excess[r]));
    const __m512 unit = _mm512_set1_ps(rows.unit[r]), term = _mm512_set1_ps(rows.term[r]);
    const __m512 width = _mm512_set1_ps(rows.width[r]);
    const __m512 own_near = _mm512_set1_ps(rows.near[r]), own_far = _mm512_set1_ps(rows.far[r]);
    uint64_t wanted = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kPanel / kLanes; ++v) {
      const __m512i sums =
          _mm512_sub_epi32(_mm512_load_si512(rows.sums + r * kPanel + v * kLanes), excess);
      __m512 key = _mm512_mul_ps(_mm512_maskz_cvtepi32_ps(kAll, sums), unit);
      key = _mm512_mul_ps(key, units[v]);
      if (rows.metric == kCosine) {
        key = _mm512_mul_ps(_mm512_mul_ps(key, term), terms[v]);
        key = _mm512_sub_ps(_mm512_set1_ps(1), key);
      } else {
        key = _mm512_sub_ps(_mm512_add_ps(term, terms[v]), _mm512_add_ps(key, key));
        key = _mm512_maskz_max_ps(kAll, key, _mm512_setzero_ps());
      }
      const __m512 near = _mm512_maskz_max_ps(kAll, own_near, column_near[v]);
      const __m512 far = _mm512_maskz_min_ps(kAll, own_far, column_far[v]);
      const uint64_t lanes = _mm512_cmp_ps_mask(_mm512_sub_ps(key, width), near, _CMP_LE_OQ) |
                             _mm512_cmp_ps_mask(_mm512_add_ps(key, width), far, _CMP_GE_OQ);
      wanted |= lanes << (v * kLanes);
    }
    bits[r] = wanted;
  }
}
#endif

// Writes the upper bounds of a row's keys in a panel, times `sign`.
MMGA_VECTOR_CLONES void key_bounds(const PanelRows& rows, int64_t r, float sign, float* bounds) {
  const int32_t* sums = rows.sums + r * kPanel;
  const uint32_t excess = rows.excess[r];
  const float unit = rows.unit[r], term = rows.term[r], error = rows.width[r];
  for (int64_t c = 0; c < kPanel; ++c) {
    const auto product = static_cast<int32_t>(static_cast<uint32_t>(sums[c]) - excess);
    float key;
    make_key<float, float>(rows.metric, term, rows.column_term[c],
                           (static_cast<float>(product) * unit) * rows.column_unit[c], key);
    bounds[c] = sign * key + error;
  }
}

inline FindWanted find_wanted() {
#if MMGA_X86_CLONES
  if (int8_instructions() == Int8Instructions::kAvx512Vnni) return find_wanted_512;
#endif
  return find_wanted_plain;
}

// The columns of a tile: units and terms of 8-bit numbers, and limits, to the end of the last
// panel; bounds, which are the largest of each panel.
struct Columns {
  std::vector<float> unit, term, radius, slack, near, far;

  Columns(const float* units, const float* terms, const Error<float>& error, int64_t width,
          int64_t panels)
      : unit(panels * kPanel, 0.0F),
        term(panels * kPanel, 0.0F),
        radius(panels),
        slack(panels),
        near(panels * kPanel, -std::numeric_limits<float>::infinity()),
        far(panels * kPanel, std::numeric_limits<float>::infinity()) {
    std::copy(units, units + width, unit.begin());
    std::copy(terms, terms + width, term.begin());
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * kPanel, last = std::min(width, first + kPanel);
      radius[panel] = *std::max_element(error.radius + first, error.radius + last);
      slack[panel] = *std::max_element(error.slack + first, error.slack + last);
    }
  }
};

struct Rows {
  const int8_t* bytes;
  const float* unit;
  const float* term;
  Error<float> error;
  const int64_t* own;  // the item that each row is; null: none is one
};

// What keys of 16-bit rows are made from.
struct Refinement {
  const int16_t* x;
  const int16_t* y;
  int64_t depth;
  PairKeys key;
  Error<double> row_error, column_error;

  double width(int64_t row, int64_t column) const {
    return row_error.radius[row] * column_error.radius[column] +
           (row_error.slack[row] + column_error.slack[column]);
  }
};

// A row and a column of a tile, and bounds of their key.
struct BoundedPair {
  int32_t row, column;
  float low, high;
};

// Computes the bounds of four pairs, rounded outwards. 16-bit rows are shorter than 2^15.5: no part
// of their products' sum leaves 32 bits, by Cauchy's inequality.
MMGA_VECTOR_CLONES void bound_pairs(const Refinement& fine, BoundedPair* pairs) {
  const int16_t* x[kTogether];
  const int16_t* y[kTogether];
  int32_t sums[kTogether] = {};
  for (int64_t p = 0; p < kTogether; ++p) {
    x[p] = fine.x + pairs[p].row * fine.depth;
    y[p] = fine.y + pairs[p].column * fine.depth;
  }
  if (y[0] == y[kTogether - 1]) {  // pairs come by columns
    for (int64_t i = 0; i < fine.depth; ++i) {
      for (int64_t p = 0; p < kTogether; ++p) sums[p] += int32_t{x[p][i]} * int32_t{y[0][i]};
    }
  } else {
    for (int64_t p = 0; p < kTogether; ++p) {
      const int16_t* one = x[p];
      const int16_t* other = y[p];
#pragma GCC unroll 4  // of few instructions, it takes a third longer where it lies badly in memory
      for (int64_t i = 0; i < fine.depth; ++i) sums[p] += int32_t{one[i]} * int32_t{other[i]};
    }
  }
  constexpr double kRounding = 0x1p-22, kSmallest = 0x1p-126;  // of float32, generously
  for (int64_t p = 0; p < kTogether; ++p) {
    const auto& [row, column, low, high] = pairs[p];
    const double key = fine.key(row, column, sums[p]), width = fine.width(row, column);
    const double least = key - width, most = key + width;
    pairs[p].low = static_cast<float>(least - (std::abs(least) * kRounding + kSmallest));
    pairs[p].high = static_cast<float>(most + (std::abs(most) * kRounding + kSmallest));
  }
}

// Copies the pairs that are within the limits of their rows or columns, which are numbered from
// `first` on, and returns how many. There is no branch: none could be foreseen.
template <int32_t BoundedPair::* kSide>
MMGA_VECTOR_CLONES int64_t pairs_within(const BoundedPair* pairs, int64_t count, int64_t first,
                                        const float* near, const float* far, BoundedPair* to) {
  int64_t found = 0;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t place = pairs[p].*kSide - first;
    to[found] = pairs[p];
    found += (pairs[p].low <= near[place]) | (pairs[p].high >= far[place]);
  }
  return found;
}

// Where a tile is: the list of its first row, the item of its first column.
struct Place {
  int64_t first_row, first_other;
};

// A strip of rows and some columns of a tile that meet.
struct Meeting {
  int64_t begin, end;   // rows
  int64_t first, last;  // columns, from the first of a panel on
  int64_t seen;         // columns that the rows have met before
  int64_t met;          // 0, or columns have lists, too (list i is that of item i): how many items
                        // these will have met
};

// The lists of the nearest, and perhaps of the farthest; the number of the nearest that each tile
// should keep depends on how many columns were seen.
struct AllLists {
  CandidateLists nearest;
  std::optional<CandidateLists> farthest;
  KeptRanks ranks;

  float near(int64_t list) const { return nearest.limit(list); }
  float far(int64_t list) const {
    return farthest ? -farthest->limit(list) : std::numeric_limits<float>::infinity();
  }
  void add(int64_t list, const Candidate& candidate, int64_t rank, std::vector<float>& scratch) {
    nearest.add(list, candidate, rank, scratch);
    if (farthest) {
      farthest->add(list, {candidate.item, -candidate.high, -candidate.low}, 1, scratch);
    }
  }
  void prune(int64_t list, int64_t rank, std::vector<float>& scratch) {
    nearest.prune(list, rank, scratch);
    if (farthest) farthest->prune(list, 1, scratch);
  }
};

// A tile, and the lists of its rows and perhaps of its columns.
struct Tile {
  const PackedColumns& packed;
  Columns columns;
  const Rows& rows;
  const Refinement& fine;
  int64_t metric;
  Place place;
  AllLists& lists;
};

// The pairs of a meeting for the lists of columns, one panel after the other.
struct MirroredPairs {
  std::vector<BoundedPair> pairs;
  std::vector<size_t> ends;  // of each panel's pairs
};

// Looks at all pairs of meetings; one for each thread.
class Collector {
 public:
  explicit Collector(const Tile& tile)
      : packed_(tile.packed),
        columns_(tile.columns),
        rows_(tile.rows),
        fine_(tile.fine),
        metric_(tile.metric),
        place_(tile.place),
        lists_(tile.lists),
        find_wanted_(find_wanted()),
        strip_(tile.packed),
        pairs_(kRowChunk * kPanel + kTogether),
        found_(kRowChunk * kPanel) {}

  // Adds pairs to the lists of rows and returns those for lists of columns.
  MirroredPairs collect(const Meeting& of) {
    MirroredPairs mirrored;
    rank_ = lists_.ranks.after(of.seen);
    for (int64_t row = of.begin; row < of.end; ++row) set_limits(row, row - of.begin);
    const int64_t begin = of.first / kPanel, end = (of.last + kPanel - 1) / kPanel;
    const int8_t* bytes = rows_.bytes + of.begin * fine_.depth;
    strip_.each_panel(bytes, of.end - of.begin, begin, end, [&](int64_t panel) {
      rank_ = lists_.ranks.after(of.seen + std::min((panel + 1) * kPanel, of.last) - of.first);
      open_.clear();
      std::fill_n(next_, kPanel + 1, 0);
      find(of.begin, of.end, panel);
      order_by_column(panel * kPanel);
      refine(of, mirrored.pairs);
      if (of.met > 0) mirrored.ends.push_back(mirrored.pairs.size());
    });
    for (int64_t row = of.begin; row < of.end; ++row)
      lists_.prune(place_.first_row + row, rank_, scratch_);
    return mirrored;
  }

 private:
  struct Pair {
    int32_t row, column;
  };

  void set_limits(int64_t row, int64_t place) {
    near_[place] = lists_.near(place_.first_row + row);
    far_[place] = lists_.far(place_.first_row + row);
  }

  // Returns the largest error of keys of 16 bits of a row and some columns, rounded up.
  float fine_width(int64_t row, int64_t first, int64_t width) const {
    double largest = 0;
    for (int64_t column = first; column < first + width; ++column) {
      largest = std::max(largest, fine_.width(row, column));
    }
    return static_cast<float>(largest) * (1 + 0x1p-20F) + std::numeric_limits<float>::min();
  }

  // Gives a row that has no limits yet such by the products of a panel.
  void begin_limits(const PanelRows& products, int64_t row, int64_t place, int64_t first) {
    if (near_[place] < std::numeric_limits<float>::infinity()) return;
    const int64_t width = std::min(kPanel, packed_.width() - first);
    const int64_t itself = rows_.own == nullptr ? -1 : rows_.own[row] - place_.first_other - first;
    const bool inside = 0 <= itself && itself < width;
    const int64_t list = place_.first_row + row, count = width - inside;
    if (count < rank_) return;
    // What is surely within a limit of 8 bits should be so by 16 bits, too.
    constexpr float kRounding = 0x1p-20F;
    const float room = 2 * fine_width(row, first, width);
    const auto limit = [&](float sign, int64_t rank) {
      float bounds[kPanel];
      key_bounds(products, place, sign, bounds);
      if (inside) bounds[itself] = bounds[width - 1];
      const auto [least, most] = std::minmax_element(bounds, bounds + count);
      const float found = limit_of(bounds, count, rank, *least, *most);
      return found + (room + std::abs(found) * kRounding);
    };
    lists_.nearest.lower(list, limit(1, rank_));
    if (lists_.farthest) lists_.farthest->lower(list, limit(-1, 1));
    set_limits(row, place);
  }

  // Lists the pairs of some rows and of a panel that 8 bits leave open.
  void find(int64_t begin, int64_t end, int64_t panel) {
    const int64_t first = panel * kPanel, width = packed_.width() - first;
    const Error<float>& error = rows_.error;
    for (int64_t row = begin; row < end; ++row) {
      width_[row - begin] =
          error.radius[row] * columns_.radius[panel] + (error.slack[row] + columns_.slack[panel]);
    }
    const PanelRows products{strip_.sums(0),
                             strip_.excess(),
                             end - begin,
                             metric_,
                             rows_.unit + begin,
                             rows_.term + begin,
                             width_,
                             near_,
                             far_,
                             columns_.unit.data() + first,
                             columns_.term.data() + first,
                             columns_.near.data() + first,
                             columns_.far.data() + first};
    for (int64_t row = begin; row < end; ++row) begin_limits(products, row, row - begin, first);
    find_wanted_(products, wanted_);
    for (int64_t row = begin; row < end; ++row) {
      uint64_t wanted = wanted_[row - begin];
      if (wanted == 0) continue;
      if (width < kPanel) wanted &= (uint64_t{1} << width) - 1;
      if (rows_.own != nullptr) {  // a row is no candidate of its own
        const int64_t itself = rows_.own[row] - place_.first_other - first;
        if (0 <= itself && itself < kPanel) wanted &= ~(uint64_t{1} << itself);
      }
      for (; wanted != 0; wanted &= wanted - 1) {
        const int column = __builtin_ctzll(wanted);
        if (next_[column + 1]++ == 0)
          prefetch(fine_.y + (first + column) * fine_.depth, fine_.depth);
        open_.push_back({static_cast<int32_t>(row), column});
      }
    }
  }

  // Brings the pairs of a panel, whose first column is given, into the order of columns, whose
  // 16-bit rows then come from the last cache once.
  void order_by_column(int64_t first) {
    for (int64_t c = 0; c < kPanel; ++c) next_[c + 1] += next_[c];
    for (const auto& [row, column] : open_) {
      auto& pair = pairs_[next_[column]++];
      pair.row = row;
      pair.column = static_cast<int32_t>(first + column);
    }
    if (!open_.empty()) std::fill_n(&pairs_[open_.size()], kTogether, pairs_[open_.size() - 1]);
  }

  // Adds the pairs of a panel to the lists of rows; those for lists of columns go to `mirrored`.
  void refine(const Meeting& of, std::vector<BoundedPair>& mirrored) {
    const auto count = static_cast<int64_t>(open_.size());
    for (int64_t p = 0; p < count; p += kTogether) bound_pairs(fine_, &pairs_[p]);
    if (of.met > 0) {
      const int64_t theirs = pairs_within<&BoundedPair::column>(
          pairs_.data(), count, 0, columns_.near.data(), columns_.far.data(), found_.data());
      mirrored.insert(mirrored.end(), found_.begin(), found_.begin() + theirs);
    }
    const int64_t mine =
        pairs_within<&BoundedPair::row>(pairs_.data(), count, of.begin, near_, far_, found_.data());
    for (int64_t p = 0; p < mine; ++p) {
      const auto& [row, column, low, high] = found_[p];
      const auto item = static_cast<int32_t>(place_.first_other + column);
      lists_.add(place_.first_row + row, {item, low, high}, rank_, scratch_);
    }
    for (int64_t p = 0; p < mine; ++p) set_limits(found_[p].row, found_[p].row - of.begin);
  }

  const PackedColumns& packed_;
  const Columns& columns_;
  const Rows& rows_;
  const Refinement& fine_;
  int64_t metric_, rank_;
  const Place& place_;
  AllLists& lists_;
  FindWanted find_wanted_;
  StripOfProducts strip_;
  float near_[kRowChunk], far_[kRowChunk], width_[kRowChunk];
  uint64_t wanted_[kRowChunk];
  std::vector<Pair> open_;                  // of a panel, as they are found
  std::vector<BoundedPair> pairs_, found_;  // the same by column; those for lists
  std::vector<float> scratch_;
  int32_t next_[kPanel + 1];  // counts of a panel's columns, then where their pairs go
};

// Adds pairs of meetings to the lists of columns.
void mirror(const Tile& tile, const std::vector<Meeting>& meetings,
            const std::vector<MirroredPairs>& pairs) {
  const Place& place = tile.place;
  share(tile.packed.panels(), [&](const auto& next) {
    std::vector<float> scratch;
    for (int64_t panel = next(); panel < tile.packed.panels(); panel = next()) {
      const int64_t first = panel * kPanel;
      int64_t last = first, rank = 1;
      for (size_t m = 0; m < meetings.size(); ++m) {
        const Meeting& of = meetings[m];
        if (first < of.first || first >= of.last) continue;
        last = std::min(of.last, first + kPanel);
        rank = tile.lists.ranks.after(of.met);
        const int64_t place_of_panel = (first - of.first) / kPanel;
        const auto& [found, ends] = pairs[m];
        for (size_t p = place_of_panel == 0 ? 0 : ends[place_of_panel - 1];
             p < ends[place_of_panel]; ++p) {
          const auto& [row, column, low, high] = found[p];
          const auto item = static_cast<int32_t>(place.first_row + row);
          tile.lists.add(place.first_other + column, {item, low, high}, rank, scratch);
        }
      }
      for (int64_t column = first; column < last; ++column)
        tile.lists.prune(place.first_other + column, rank, scratch);
    }
  });
}

// Adds the pairs of meetings, each of other rows or other columns, to lists.
void meet(Tile& tile, const std::vector<Meeting>& meetings) {
  const bool mirrored = !meetings.empty() && meetings[0].met > 0;
  for (int64_t column = 0; mirrored && column < tile.packed.width(); ++column) {
    tile.columns.near[column] = tile.lists.near(tile.place.first_other + column);
    tile.columns.far[column] = tile.lists.far(tile.place.first_other + column);
  }
  const auto count = static_cast<int64_t>(meetings.size());
  std::vector<MirroredPairs> found(count);
  share(count, [&](const auto& next) {
    Collector collector(tile);
    for (int64_t m = next(); m < count; m = next()) found[m] = collector.collect(meetings[m]);
  });
  if (mirrored) mirror(tile, meetings, found);
}

// Returns the most rows of a strip: fewer than fit where there would be too few strips for all
// threads.
int64_t strip_height(int64_t rows) {
  const int64_t parts = 2 * kernel_threads(), even = (rows + parts - 1) / parts;
  return std::clamp((even + kBlock - 1) / kBlock * kBlock, kBlock, kRowChunk);
}

// Appends the meetings of some rows, by strips that are about equal, and columns.
void add_strips(const Meeting& of, int64_t most, std::vector<Meeting>& to) {
  const int64_t rows = of.end - of.begin;
  const int64_t strips = std::max<int64_t>(1, (rows + most - 1) / most);
  const int64_t strip = ((rows + strips - 1) / strips + kBlock - 1) / kBlock * kBlock;
  for (int64_t begin = of.begin; begin < of.end; begin += strip) {
    to.push_back(of);
    to.back().begin = begin;
    to.back().end = std::min(of.end, begin + strip);
  }
}

// Lets a tile of items with lists meet itself, each pair but a few once: blocks meet themselves, so
// that lists have limits, but perhaps those of the last; then one of two neighbours meets the
// other, which makes a block of both. Limits of columns are lowered each time that some rows have
// met them.
void meet_itself(Tile& tile) {
  constexpr int64_t kLeast = kPanel, kShare = 4, kMost = 1024;
  const int64_t width = tile.packed.width();
  int64_t block = kLeast;  // of whose pairs a limit leaves a small share
  while (block < width && kShare * tile.lists.ranks.after(block) > block) block *= 2;
  std::vector<Meeting> meetings;
  for (int64_t first = 0; first < width; first += block) {
    const int64_t last = std::min(width, first + block);
    add_strips({first, last, first, last, 0, 0}, strip_height(width), meetings);
  }
  meet(tile, meetings);
  for (; block < width; block *= 2) {
    for (int64_t low = 0, high = 0; low < block; low = high) {
      high = std::min(block, low + kMost);
      meetings.clear();
      for (int64_t left = 0; left + block < width; left += 2 * block) {
        const int64_t right = left + block, last = std::min(width, right + block);
        add_strips({left + low, left + high, right, last, block, last - right + high},
                   strip_height(width / 2), meetings);
      }
      meet(tile, meetings);
    }
  }
}

void collect_candidates_(
    Tensor candidates, Tensor counts, Tensor limits, std::optional<Tensor> far_candidates,
    std::optional<Tensor> far_counts, std::optional<Tensor> far_limits, int64_t k, const Tensor& x,
    const Tensor& y, const Tensor& row_unit, const Tensor& column_unit, const Tensor& row_term,
    const Tensor& column_term, const Tensor& row_radius, const Tensor& column_radius,
    const Tensor& row_slack, const Tensor& column_slack, const Tensor& fine_x, const Tensor& fine_y,
    const Tensor& fine_row_term, const Tensor& fine_column_term, const Tensor& fine_row_radius,
    const Tensor& fine_column_radius, const Tensor& fine_row_slack, const Tensor& fine_column_slack,
    int64_t metric, std::optional<Tensor> own, int64_t first_row, int64_t first_other,
    bool mirrored, int64_t seen, int64_t total) {
  const Arguments args("collect_candidates_", candidates);
  const auto* bytes = args.input<int8_t>(x, "x", {kAny, kAny});
  const int64_t height = x.size(0), depth = x.size(1), width = y.size(0);
  args.range("columns of x", depth, 0, kWidestBytes);
  PackedColumns packed(args.input<int8_t>(y, "y", {width, depth}), width, depth);
  args.range("metric", metric, kCosine, kEuclidean);
  args.tensor(candidates, "candidates", {ScalarType::Int}, {kAny, kAny, 3});
  const int64_t all = candidates.size(0);
  args.range("first_row", first_row, 0, all - height);
  const bool itself = mirrored && first_other == first_row && width == height;
  if (mirrored && !itself) {
    args.range("first_other", first_other, first_row + height, all - width);
  }
  args.require(!itself || seen == 0, "seen: expected 0 where a tile meets itself, found ", seen);
  AllLists lists{CandidateLists(args, "", candidates, counts, limits, all, k), std::nullopt,
                 KeptRanks(k, total)};
  if (far_candidates.has_value()) {
    args.require(far_counts && far_limits,
                 "far_candidates: expected with far_counts and far_limits, found it without");
    lists.farthest.emplace(args, "far_", *far_candidates, *far_counts, *far_limits, all, 1);
  }
  const Rows rows{bytes,
                  args.input<float>(row_unit, "row_unit", {height}),
                  args.input<float>(row_term, "row_term", {height}),
                  {args.input<float>(row_radius, "row_radius", {height}),
                   args.input<float>(row_slack, "row_slack", {height})},
                  args.input<int64_t>(own, "own", {height})};
  Columns columns(args.input<float>(column_unit, "column_unit", {width}),
                  args.input<float>(column_term, "column_term", {width}),
                  {args.input<float>(column_radius, "column_radius", {width}),
                   args.input<float>(column_slack, "column_slack", {width})},
                  width, packed.panels());
  const Refinement fine{
      args.input<int16_t>(fine_x, "fine_x", {height, depth}),
      args.input<int16_t>(fine_y, "fine_y", {width, depth}),
      depth,
      {args.input<double>(fine_row_term, "fine_row_term", {height}),
       args.input<double>(fine_column_term, "fine_column_term", {width}), metric, true},
      {args.input<double>(fine_row_radius, "fine_row_radius", {height}),
       args.input<double>(fine_row_slack, "fine_row_slack", {height})},
      {args.input<double>(fine_column_radius, "fine_column_radius", {width}),
       args.input<double>(fine_column_slack, "fine_column_slack", {width})}};
  Tile tile{packed, std::move(columns), rows, fine, metric, {first_row, first_other}, lists};
  if (itself) {
    meet_itself(tile);
    return;
  }
  std::vector<Meeting> meetings;
  const int64_t met = mirrored ? width + first_row + height : 0;
  add_strips({0, height, 0, width, seen, met}, strip_height(height), meetings);
  meet(tile, meetings);
}

// Vectors in memory, and their norms (cosine) or squared norms (euclidean).
struct Side {
  PlacedRows rows;
  const double* term;

  // `name` is that of the first matrix among the arguments.
  Side(const Arguments& args, const std::string& name, const Tensor& first,
       const std::optional<Tensor>& more, const std::optional<Tensor>& place,
       const std::optional<Tensor>& scale, const Tensor& term)
      : rows(args, name, first, more, place, scale),
        term(args.input<double>(term, ("term_" + name).c_str(), {rows.count()})) {}
};

typedef std::pair<double, int32_t> Neighbour;  // squared distance and item

// The candidates of an item.
struct ListOfItem {
  int64_t item;
  const Candidate* candidates;
  int64_t count;
};

// Computes the squared distances of items and of their candidates; one for each thread.
class Settler {
 public:
  // `order` is the item that each candidate's number stands for; null: the number itself.
  Settler(const Side& x, const Side& y, int64_t metric, const int64_t* order)
      : x_(x),
        y_(y),
        metric_(metric),
        order_(order),
        own_(x.rows.depth()),
        widened_((kTogether + 1) * x.rows.depth()) {}

  int64_t item_of(const Candidate& candidate) const {
    return order_ == nullptr ? candidate.item : order_[candidate.item];
  }

  // Returns the distances of the candidates of all lists, one list after the other. Those of so
  // many columns come together: the first ones of all lists, then the next.
  const double* distances(const std::vector<ListOfItem>& lists, int64_t together) {
    const int64_t width = y_.rows.count();
    int64_t all = 0;
    for (const ListOfItem& list : lists) all += list.count;
    found_.resize(all);
    done_.assign(lists.size(), 0);
    for (int64_t end = together; end < width + together; end += together) {
      double* to = found_.data();
      for (size_t l = 0; l < lists.size(); ++l) {
        const ListOfItem& list = lists[l];
        if (l + 1 < lists.size()) x_.rows.prefetch_row(lists[l + 1].item);
        const int64_t begin = done_[l];
        int64_t& now = done_[l];
        if (end >= width) now = list.count;
        while (now < list.count && list.candidates[now].item < end) ++now;
        write(list.item, list.candidates + begin, now - begin, to + begin);
        to += list.count;
      }
    }
    return found_.data();
  }

 private:
  // Writes the distances of an item and of some candidates.
  void write(int64_t item, const Candidate* candidates, int64_t count, double* to) {
    if (count == 0) return;
    const int64_t depth = y_.rows.depth();
    own_.renew(x_.rows.read(item, widened_.data() + kTogether * depth));
    const float* rows[kTogether];
    double sums[kTogether];
    for (int64_t c = 0; c < count; c += kTogether) {
      const int64_t several = std::min(kTogether, count - c);
      for (int64_t s = 0; s < several; ++s)
        rows[s] = y_.rows.read(item_of(candidates[c + s]), widened_.data() + s * depth);
      for (int64_t s = several; s < kTogether; ++s) rows[s] = rows[0];
      for (int64_t n = c + several; n < std::min(count, c + 2 * kTogether); ++n) {
        y_.rows.prefetch_row(item_of(candidates[n]));
      }
      if (metric_ == kEuclidean) {
        sum_terms<SquaredDifference, kTogether>(own_.get(), rows, depth, sums);
      } else {
        sum_terms<Product, kTogether>(own_.get(), rows, depth, sums);
      }
      for (int64_t s = 0; s < several; ++s) {
        to[c + s] = squared_distance(item, item_of(candidates[c + s]), sums[s]);
      }
    }
  }

  double squared_distance(int64_t row, int64_t column, double sum) const {
    if (metric_ == kEuclidean) return sum;
    const double norms = x_.term[row] * y_.term[column];
    const double squared = 2 * (norms > 0 ? 1 - sum / norms : 1);
    return squared > 0 ? squared : 0;
  }

  const Side& x_;
  const Side& y_;
  int64_t metric_;
  const int64_t* order_;
  CommonRow<float> own_;
  std::vector<float> widened_;  // rows that are not of float32
  std::vector<double> found_;
  std::vector<int64_t> done_;  // candidates of each list
};

// How many lists a thread settles together, one part of the columns after the other: where lists
// are long, the vectors of a part are in the second cache for all of them.
struct SettledTogether {
  int64_t lists, columns;

  SettledTogether(int64_t candidates, int64_t count, const PlacedRows& items)
      : lists(64), columns(items.count()) {
    constexpr int64_t kPartBytes = 1 << 18, kLists = 256, kLeastOfList = 4;
    const int64_t part = std::max<int64_t>(1, kPartBytes / (items.row_bytes() + 1));
    if (static_cast<double>(candidates) * part < double{kLeastOfList} * count * columns) return;
    lists = kLists;
    columns = part;
  }
};

// Orders neighbours by (distance, item), the farthest first where `farthest`; one for each thread.
// Distances are spread over as many equal ranges as there are neighbours, most of which have few:
// that sorts them with few comparisons, whose outcome could not be foreseen.
class NeighbourOrder {
 public:
  explicit NeighbourOrder(bool farthest) : farthest_(farthest) {}

  // Writes the first k.
  void write(const std::vector<Neighbour>& found, int64_t k, int32_t* items, double* distances) {
    if (found.empty()) return;
    const auto count = static_cast<int64_t>(found.size());
    spread(found);
    const auto before = [this](const Neighbour& one, const Neighbour& other) {
      if (one.first != other.first) return farthest_ != (one.first < other.first);
      return one.second < other.second;
    };
    int64_t begin = 0;
    for (int64_t range = 0; range < count && begin < k; ++range) {
      if (ends_[range] - begin > 1) {
        std::sort(ordered_.begin() + begin, ordered_.begin() + ends_[range], before);
      }
      begin = ends_[range];
    }
    for (int64_t s = 0; s < k; ++s) {
      distances[s] = ordered_[s].first;
      items[s] = ordered_[s].second;
    }
  }

 private:
  // Brings neighbours into the order of their ranges, and finds the end of each range.
  void spread(const std::vector<Neighbour>& found) {
    const auto count = static_cast<int64_t>(found.size());
    constexpr double kEndless = std::numeric_limits<double>::infinity();
    double least = kEndless, most = -kEndless;  // of finite distances, but for copies' 0
    for (const auto& [distance, item] : found) {
      least = distance > 0 ? std::min(least, distance) : least;
      most = distance < kEndless ? std::max(most, distance) : most;
    }
    const double ranges = static_cast<double>(count) / (most - least);
    const double scale = ranges < kEndless ? ranges : 0;
    range_.resize(count);
    ends_.assign(count, 0);
    for (int64_t s = 0; s < count; ++s) {
      const double place = (found[s].first - least) * scale;  // NaN: of what is infinitely far
      const int64_t last = count - 1;
      const bool inside = place < static_cast<double>(last);
      const int64_t range = inside ? static_cast<int64_t>(std::max(place, 0.0)) : last;
      range_[s] = static_cast<int32_t>(farthest_ ? last - range : range);
      ++ends_[range_[s]];
    }
    int32_t begin = 0;  // of a range, and after its last neighbour was written, its end
    for (int32_t& end : ends_) begin += std::exchange(end, begin);
    ordered_.resize(count);
    for (int64_t s = 0; s < count; ++s) ordered_[ends_[range_[s]]++] = found[s];
  }

  bool farthest_;
  std::vector<Neighbour> ordered_;
  std::vector<int32_t> range_, ends_;
};

std::tuple<Tensor, Tensor> settle_candidates(
    const Tensor& candidates, const Tensor& counts, const Tensor& lists, const Tensor& chosen,
    std::optional<Tensor> order, const Tensor& x, std::optional<Tensor> more_x,
    std::optional<Tensor> place_x, std::optional<Tensor> scale_x, const Tensor& term_x,
    const Tensor& y, std::optional<Tensor> more_y, std::optional<Tensor> place_y,
    std::optional<Tensor> scale_y, const Tensor& term_y, int64_t metric, int64_t k, bool own,
    bool farthest) {
  const Arguments args("settle_candidates", candidates);
  const int64_t all = candidates.size(0), count = lists.size(0), slots = candidates.size(1);
  const auto* from = reinterpret_cast<const Candidate*>(
      args.input<int32_t>(candidates, "candidates", {kAny, kAny, 3}));
  const auto* used = args.input<int32_t>(counts, "counts", {all});
  const auto* list = args.input<int64_t>(lists, "lists", {kAny});
  const auto* item = args.input<int64_t>(chosen, "chosen", {count});
  const Side x_side(args, "x", x, more_x, place_x, scale_x, term_x);
  const Side y_side(args, "y", y, more_y, place_y, scale_y, term_y);
  const PlacedRows &rows = x_side.rows, &columns = y_side.rows;
  args.range("columns of y", columns.depth(), rows.depth(), rows.depth());
  args.range("metric", metric, kCosine, kEuclidean);
  const auto* numbers = args.input<int64_t>(order, "order", {columns.count()});
  for (int64_t i = 0; numbers != nullptr && i < columns.count(); ++i) {
    args.range("order", numbers[i], 0, columns.count() - 1);
  }
  for (int64_t l = 0; l < count; ++l) {
    args.range("lists", list[l], 0, all - 1);
    args.range("chosen", item[l], 0, rows.count() - 1);
    args.require(used[list[l]] + own >= k && used[list[l]] <= slots, "counts: expected ", k - own,
                 " to ", slots, ", found ", used[list[l]], " at ", list[l]);
  }
  constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
  std::atomic<int64_t> outside{kNone};  // a candidate that is no column
  share_ranges(count, rows_per_thread(slots), [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      const Candidate* one = from + list[l] * slots;
      for (int64_t c = 0; c < used[list[l]]; ++c) {
        if (one[c].item < 0 || one[c].item >= columns.count()) outside = one[c].item;
      }
    }
  });
  args.require(outside == kNone, "candidates: expected 0 to ", columns.count() - 1, ", found ",
               outside.load());
  const Tensor near = new_tensor<int32_t>(candidates, {count, k});
  const Tensor distances = new_tensor<double>(candidates, {count, k});
  auto* to_items = data_of<int32_t>(near);
  auto* to = data_of<double>(distances);
  int64_t candidates_of_all = 0;
  for (int64_t l = 0; l < count; ++l) candidates_of_all += used[list[l]];
  const SettledTogether together(candidates_of_all, count, columns);
  share((count + together.lists - 1) / together.lists, [&](const auto& next) {
    Settler settler(x_side, y_side, metric, numbers);
    std::vector<ListOfItem> some;
    std::vector<Neighbour> found;
    NeighbourOrder order_of_found(farthest);
    for (int64_t first = next() * together.lists; first < count; first = next() * together.lists) {
      some.clear();
      const int64_t last = std::min(count, first + together.lists);
      for (int64_t l = first; l < last; ++l) {
        some.push_back({item[l], from + list[l] * slots, used[list[l]]});
      }
      const double* distance = settler.distances(some, together.columns);
      for (int64_t l = first; l < last; ++l) {
        const ListOfItem& own_list = some[l - first];
        found.clear();
        for (int64_t c = 0; c < own_list.count; ++c) {
          const int64_t column = settler.item_of(own_list.candidates[c]);
          found.emplace_back(*distance++, static_cast<int32_t>(column));
        }
        if (own) found.emplace_back(0.0, static_cast<int32_t>(item[l]));
        order_of_found.write(found, k, to_items + l * k, to + l * k);
      }
    }
  });
  return {near, distances};
}

// Returns how many candidates of each list are surely within its limit.
Tensor sure_candidates(const Tensor& candidates, const Tensor& counts, const Tensor& limits) {
  const Arguments args("sure_candidates", candidates);
  const int64_t lists = candidates.size(0), slots = candidates.size(1);
  const auto* from = reinterpret_cast<const Candidate*>(
      args.input<int32_t>(candidates, "candidates", {kAny, kAny, 3}));
  const auto* used = args.input<int32_t>(counts, "counts", {lists});
  const auto* limit = args.input<float>(limits, "limits", {lists});
  for (int64_t list = 0; list < lists; ++list) args.range("counts", used[list], kLost, slots);
  const Tensor sure = new_tensor<int32_t>(candidates, {lists});
  auto* to = data_of<int32_t>(sure);
  share_ranges(lists, rows_per_thread(slots), [&](int64_t begin, int64_t end) {
    for (int64_t list = begin; list < end; ++list) {
      const Candidate* one = from + list * slots;
      int32_t within = 0;
      for (int64_t c = 0; c < used[list]; ++c) within += one[c].high <= limit[list];
      to[list] = within;
    }
  });
  return sure;
}

// Returns the first k candidates of each row by (distance, index).
std::tuple<Tensor, Tensor> nearest_of(const Tensor& index, const Tensor& distance, int64_t k) {
  const Arguments args("nearest_of", index);
  const auto* items = args.input<int32_t>(index, "index", {kAny, kAny});
  const int64_t rows = index.size(0), slots = index.size(1);
  const auto* from = args.input<double>(distance, "distance", {rows, slots});
  args.range("k", k, 0, slots);
  const Tensor near = new_tensor<int32_t>(index, {rows, k});
  const Tensor distances = new_tensor<double>(index, {rows, k});
  auto* to_item = data_of<int32_t>(near);
  auto* to = data_of<double>(distances);
  share_ranges(rows, rows_per_thread(8 * slots), [&](int64_t begin, int64_t end) {
    std::vector<Neighbour> found;
    NeighbourOrder order(false);
    for (int64_t row = begin; row < end; ++row) {
      found.clear();
      for (int64_t s = row * slots; s < (row + 1) * slots; ++s)
        found.emplace_back(from[s], items[s]);
      order.write(found, k, to_item + row * k, to + row * k);
    }
  });
  return {near, distances};
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("collect_candidates_", TORCH_BOX(&mmga::collect_candidates_));
  m.impl("settle_candidates", TORCH_BOX(&mmga::settle_candidates));
  m.impl("sure_candidates", TORCH_BOX(&mmga::sure_candidates));
  m.impl("nearest_of", TORCH_BOX(&mmga::nearest_of));
}
