// The k smallest of a stream of keys, which a warp collects in a list in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace mmga {

// A float64 above an index.
__extension__ typedef unsigned __int128 WideKey;

__device__ inline uint64_t exchanged(uint64_t key, int with) {
  return __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(key), with);
}
__device__ inline WideKey exchanged(WideKey key, int with) {
  const uint64_t high = exchanged(static_cast<uint64_t>(key >> 64), with);
  const uint64_t low = exchanged(static_cast<uint64_t>(key), with);
  return static_cast<WideKey>(high) << 64 | low;
}

template <typename Key>
__device__ Key smallest_key(Key key) {
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const Key other = exchanged(key, with);
    key = other < key ? other : key;
  }
  return key;
}

template <typename Key>
__device__ Key largest_key(Key key) {
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const Key other = exchanged(key, with);
    key = other > key ? other : key;
  }
  return key;
}

// Keys must differ. The list has more slots than k; one that is full is shrunk at once, so that
// there is always room for one more. Lanes act together in every member.
template <typename Key>
struct SmallestKeys {
  Key* list;
  int64_t slots;
  int64_t k;
  int64_t count;
  Key bound;  // no key above it is among the k smallest

  // Inserts a key of each lane that has one.
  __device__ void insert(bool has_key, Key key) {
    has_key = has_key && key <= bound;
    unsigned hits = __ballot_sync(kAllLanes, has_key);
    while (hits != 0) {
      const int64_t place = count + __popc(hits & ((1u << lane()) - 1));
      if (has_key && place < slots) {
        list[place] = key;
        has_key = false;
      }
      count += __popc(hits);
      count = count < slots ? count : slots;
      __syncwarp();
      if (count == slots) {
        shrink();
        has_key = has_key && key <= bound;
      }
      hits = __ballot_sync(kAllLanes, has_key);
    }
  }

  // Shrinks the list to the k smallest and perhaps some more. Keys differ, so that bisection ends.
  __device__ void shrink() {
    Key low = list[0];
    Key high = low;
    for (int64_t t = lane(); t < count; t += kWarp) {
      low = list[t] < low ? list[t] : low;
      high = list[t] > high ? list[t] : high;
    }
    low = smallest_key(low);
    high = largest_key(high);
    // At least k keys are <= high, fewer than k are < low.
    const int64_t enough = k + (count - k) / 4;
    for (int64_t within = count; within > enough && low < high;) {
      const Key middle = low + (high - low) / 2;
      int number = 0;
      for (int64_t t = lane(); t < count; t += kWarp) number += list[t] <= middle;
      number = warp_sum(number);
      if (number < k) {
        low = middle + 1;
      } else {
        high = middle;
        within = number;
      }
    }
    int64_t left = 0;
    for (int64_t begin = 0; begin < count; begin += kWarp) {
      const bool there = begin + lane() < count;
      const Key key = there ? list[begin + lane()] : high;
      const unsigned stay = __ballot_sync(kAllLanes, there && key <= high);
      __syncwarp();
      if (there && key <= high) list[left + __popc(stay & ((1u << lane()) - 1))] = key;
      left += __popc(stay);
      __syncwarp();
    }
    count = left;
    bound = high;
  }

  // Calls take(place, key) for the k smallest, by the lane that has the key; places are in order.
  template <typename Take>
  __device__ void each_in_order(const Take& take) const {
    for (int64_t t = lane(); t < count; t += kWarp) {
      const Key key = list[t];
      int64_t place = 0;
      for (int64_t other = 0; other < count; ++other) place += list[other] < key;
      if (place < k) take(place, key);
    }
  }
};

}  // namespace mmga
