// Pairs that 8-bit products leave as bits, a warp to a row: listed, or bounded by 16-bit integers,
// eight lanes to a pair, and added to the row's list. A list whose slots are taken is pruned: the
// k-th least upper bound is its new limit, and what lies above it goes. Bound by reads of scattered
// rows.
#include "cuda/certified.cuh"
#include "cuda/launch.cuh"
#include "cuda/products.cuh"

namespace mmga {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

// Unsigned integers that order like the numbers.
__device__ unsigned in_order(float value) {
  const unsigned bits = static_cast<unsigned>(__float_as_int(value));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float number_of(unsigned in_order) {
  const unsigned bits = (in_order >> 31) != 0 ? in_order & 0x7fffffffu : ~in_order;
  return __int_as_float(static_cast<int>(bits));
}

struct Candidate {
  int32_t item;
  float low, high;
};

// The list of one row. Lanes act together in every member.
struct List {
  int32_t* line;
  int64_t slots, kept, count;
  float limit;

  __device__ bool exists() const { return line != nullptr; }

  __device__ Candidate at(int64_t place) const {
    const int32_t* entry = line + 3 * place;
    return {entry[0], __int_as_float(entry[1]), __int_as_float(entry[2])};
  }
  __device__ void write(int64_t place, const Candidate& one) {
    int32_t* entry = line + 3 * place;
    entry[0] = one.item;
    entry[1] = __float_as_int(one.low);
    entry[2] = __float_as_int(one.high);
  }

  // Adds a candidate of each lane that has one, in the order of the lanes.
  __device__ void add(bool has, const Candidate& one) {
    unsigned hits = __ballot_sync(kAllLanes, has && one.low <= limit);
    while (hits != 0) {
      has = has && one.low <= limit;
      const int64_t place = count + __popc(hits & ((1u << lane()) - 1));
      if (has && place < slots) {
        write(place, one);
        has = false;
      }
      count += __popc(hits);
      count = count < slots ? count : slots;
      __syncwarp();
      if (count == slots) prune();
      hits = __ballot_sync(kAllLanes, has && one.low <= limit);
    }
  }

  // Lowers the limit and drops what lies above it; where no slot becomes free the list is lost.
  __device__ void prune() {
    if (count >= kept) {
      const float least = kth_bound();
      limit = least < limit ? least : limit;
    }
    int64_t left = 0;
    for (int64_t begin = 0; begin < count; begin += kWarp) {
      const bool there = begin + lane() < count;
      const Candidate one = there ? at(begin + lane()) : Candidate{0, 0, 0};
      const bool stays = there && one.low <= limit;
      const unsigned stay = __ballot_sync(kAllLanes, stays);
      if (stays) write(left + __popc(stay & ((1u << lane()) - 1)), one);
      left += __popc(stay);
      __syncwarp();
    }
    count = left;
    if (count == slots) {
      count = -1;
      limit = -kInfinity;
    }
  }

  // The k-th least upper bound among at least k.
  __device__ float kth_bound() const {
    unsigned low = ~0u, high = 0;
    for (int64_t t = lane(); t < count; t += kWarp) {
      const unsigned value = in_order(at(t).high);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    low = warp_min(low);
    high = warp_max(high);
    while (low < high) {
      const unsigned middle = low + (high - low) / 2;
      int within = 0;
      for (int64_t t = lane(); t < count; t += kWarp) within += in_order(at(t).high) <= middle;
      if (warp_sum(within) < kept) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return number_of(high);
  }
};

__device__ List list_of(const BoundedLists& lists, int64_t number) {
  if (lists.candidates == nullptr) return {nullptr, 0, 1, -1, -kInfinity};
  return {lists.candidates + number * lists.slots * 3, lists.slots, lists.kept,
          lists.counts[number], lists.limits[number]};
}

__device__ void finish(const BoundedLists& lists, int64_t number, List& list) {
  if (!list.exists()) return;
  if (list.count > 0) list.prune();
  if (lane() == 0) {
    lists.counts[number] = static_cast<int32_t>(list.count);
    lists.limits[number] = list.limit;
  }
}

// The bounds of a key, rounded to float32 away from it.
__device__ Candidate candidate(int64_t item, double key, double error) {
  return {static_cast<int32_t>(item), nextafterf(static_cast<float>(key - error), -kInfinity),
          nextafterf(static_cast<float>(key + error), kInfinity)};
}

__device__ int place_of_bit(unsigned bits, int number) {
  for (; number > 0; --number) bits &= bits - 1;
  return bits == 0 ? -1 : __ffs(static_cast<int>(bits)) - 1;
}

// With 6 blocks on a multiprocessor a thread has 80 registers; left alone, ptxas spills at 64.
__global__ void __launch_bounds__(kWarpThreads, 6)
    add_candidates_kernel(const BoundedLists nearest, const BoundedLists farthest,
                          const FinePairs p) {
  for (int64_t row = warp_number(); row < p.rows; row += warp_count()) {
    const int64_t number = p.first_row + row;
    List near = list_of(nearest, number), far = list_of(farthest, number);
    for (int64_t begin = 0; begin < p.words; begin += kWarp) {
      const int64_t mine = begin + lane();
      const unsigned word =
          mine < p.words ? static_cast<unsigned>(p.bits[row * p.words + mine]) : 0;
      for (unsigned some = __ballot_sync(kAllLanes, word != 0); some != 0; some &= some - 1) {
        const int of = __ffs(static_cast<int>(some)) - 1;
        unsigned bits = __shfl_sync(kAllLanes, word, of);
        while (bits != 0) {
          const int bit = place_of_bit(bits, lane() / kAccumulators);
          for (int i = 0; i < kRowsPerWarp; ++i) bits &= bits - 1;
          const bool there = bit >= 0;
          const int64_t column = there ? (begin + of) * 32 + bit : 0;
          const double sum =
              integer_sum(p.x + row * p.width, p.y + column * p.width, there ? p.width : 0);
          const double key = p.key(row, column, sum);
          const double error = (p.row_slack[row] + p.column_slack[column]) +
                               p.row_radius[row] * p.column_radius[column];
          const bool has = there && lane() % kAccumulators == 0;
          near.add(has, candidate(p.first_item + column, key, error));
          if (far.exists()) far.add(has, candidate(p.first_item + column, -key, error));
        }
      }
    }
    finish(nearest, number, near);
    finish(farthest, number, far);
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    count_bits_kernel(const int32_t* bits, int64_t rows, int64_t words, int64_t* counts) {
  for (int64_t row = warp_number(); row < rows; row += warp_count()) {
    int count = 0;
    for (int64_t w = lane(); w < words; w += kWarp) {
      count += __popc(static_cast<unsigned>(bits[row * words + w]));
    }
    count = warp_sum(count);
    if (lane() == 0) counts[row] = count;
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    list_bits_kernel(const int32_t* bits, int64_t rows, int64_t words, const int64_t* offsets,
                     int32_t* pairs) {
  for (int64_t row = warp_number(); row < rows; row += warp_count()) {
    int64_t place = offsets[row];
    if (place == offsets[row + 1]) continue;
    for (int64_t begin = 0; begin < words; begin += kWarp) {
      const int64_t w = begin + lane();
      unsigned left = w < words ? static_cast<unsigned>(bits[row * words + w]) : 0;
      const int64_t end = warp_running_sum<int64_t>(__popc(left));
      int64_t to = place + end - __popc(left);
      for (; left != 0; left &= left - 1, ++to) {
        pairs[2 * to] = static_cast<int32_t>(row);
        pairs[2 * to + 1] = static_cast<int32_t>(w * 32 + __ffs(static_cast<int>(left)) - 1);
      }
      place += __shfl_sync(kAllLanes, end, kWarp - 1);
    }
  }
}

}  // namespace

cudaError_t launch_count_bits(const int32_t* bits, int64_t rows, int64_t words, int64_t* counts,
                              cudaStream_t stream) {
  return launch(count_bits_kernel, blocks_for(rows, kWarpsPerBlock), kWarpThreads, stream, bits,
                rows, words, counts);
}

cudaError_t launch_list_bits(const int32_t* bits, int64_t rows, int64_t words,
                             const int64_t* offsets, int32_t* pairs, cudaStream_t stream) {
  return launch(list_bits_kernel, blocks_for(rows, kWarpsPerBlock), kWarpThreads, stream, bits,
                rows, words, offsets, pairs);
}

cudaError_t launch_add_candidates(const BoundedLists& nearest, const BoundedLists& farthest,
                                  const FinePairs& pairs, cudaStream_t stream) {
  return launch(add_candidates_kernel, blocks_for(pairs.rows, kWarpsPerBlock), kWarpThreads, stream,
                nearest, farthest, pairs);
}

}  // namespace mmga
