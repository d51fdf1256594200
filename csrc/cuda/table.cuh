// A sparse row in the making: sums by column, drained in ascending order of columns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/sparse_rows.cuh"

namespace mmga {

// A warp's table over n columns in device memory: sums, a bitmap of the columns that have one, and
// a bitmap of that bitmap's groups of 32 words. All is zero before it is used and after `drain`, so
// that a row costs what it holds and n / 32768 words. Lanes may act apart but in `drain`; columns
// that are added between two barriers differ.
struct Table {
  static constexpr int64_t kGroup = kWarp * 32;  // columns of a bit of `groups`

  double* sums;
  uint32_t* words;
  uint32_t* groups;
  int64_t group_words;

  // Of n columns; in units of 8 bytes, so that tables that follow one another are aligned.
  __host__ __device__ static int64_t group_words_of(int64_t n) {
    return (n + kGroup * 32 - 1) / (kGroup * 32);
  }
  __host__ __device__ static int64_t words_of(int64_t n) {
    return (n + kGroup - 1) / kGroup * kWarp;
  }
  __host__ __device__ static int64_t units_of(int64_t n, bool with_sums) {
    return (with_sums ? n : 0) + (words_of(n) + group_words_of(n) + 1) / 2;
  }

  __device__ static Table at(uint64_t* scratch, int64_t number, int64_t n, bool with_sums) {
    uint64_t* mine = scratch + number * units_of(n, with_sums);
    Table table;
    table.sums = reinterpret_cast<double*>(mine);
    table.words = reinterpret_cast<uint32_t*>(mine + (with_sums ? n : 0));
    table.groups = table.words + words_of(n);
    table.group_words = group_words_of(n);
    return table;
  }

  __device__ void insert(int64_t column) const {
    atomicOr(&words[column / 32], 1u << (column % 32));
    const int64_t group = column / kGroup;
    atomicOr(&groups[group / 32], 1u << (group % 32));
  }

  __device__ void add(int64_t column, double value) const {
    sums[column] += value;
    insert(column);
  }

  // Calls take(place, column) for each column in ascending order that `keep(column)` is true of, by
  // some lane, and leaves the table empty but for sums, which `take` or `keep` clear. Returns how
  // many were taken.
  template <typename Keep, typename Take>
  __device__ int64_t drain(const Keep& keep, const Take& take) const {
    __syncwarp();
    int64_t taken = 0;
    for (int64_t first = 0; first < group_words; first += kWarp) {
      const int64_t mine = first + lane();
      const uint32_t own = mine < group_words ? groups[mine] : 0;
      if (own != 0) groups[mine] = 0;
      for (unsigned filled = __ballot_sync(kAllLanes, own != 0); filled != 0;
           filled &= filled - 1) {
        const int from = __ffs(static_cast<int>(filled)) - 1;
        for (uint32_t bits = __shfl_sync(kAllLanes, own, from); bits != 0; bits &= bits - 1) {
          const int64_t group = (first + from) * 32 + __ffs(static_cast<int>(bits)) - 1;
          taken += drain_group(group, taken, keep, take);
        }
      }
    }
    __syncwarp();
    return taken;
  }

 private:
  // A group: a word of 32 columns for each lane.
  template <typename Keep, typename Take>
  __device__ int64_t drain_group(int64_t group, int64_t begin, const Keep& keep,
                                 const Take& take) const {
    const int64_t at = group * kWarp + lane();
    uint32_t word = words[at];
    if (word != 0) words[at] = 0;
    uint32_t kept = 0;
    for (; word != 0; word &= word - 1) {
      const int bit = __ffs(static_cast<int>(word)) - 1;
      if (keep(at * 32 + bit)) kept |= 1u << bit;
    }
    const int count = __popc(kept);
    const int running = warp_running_sum(count);
    int64_t place = begin + running - count;
    for (; kept != 0; kept &= kept - 1) {
      take(place++, at * 32 + __ffs(static_cast<int>(kept)) - 1);
    }
    return __shfl_sync(kAllLanes, running, kWarp - 1);
  }
};

// Blocks of a kernel that gives each warp a row: no more warps than there are tables.
inline int64_t blocks_of(const Scratch& scratch, int64_t rows) {
  return std::min(scratch.warps / kWarpsPerBlock, blocks_for(rows, kWarpsPerBlock));
}

}  // namespace mmga
