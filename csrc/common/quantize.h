// How rows become integers of 8 bits, without torch: shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace mmga {

constexpr int64_t kMostOfByte = 127;
constexpr float kMostOfShort = 32767;
// The most numbers of a row whose products with 16-bit integers are bounded (docs/certified.md).
constexpr int64_t kWidestShorts = 1 << 24;

// Entries and squared norms below which rows become 0: their scales would not be float32 numbers.
constexpr float kLeastEntry = 0x1p-100F;
constexpr double kLeastSquared = 0x1p-170;

// Columns that the mixing of a row should have, and the most rows.
constexpr int64_t kColumns = 16, kMostMixed = 64;

// Returns how many entries of a row of `width` are mixed with each other: a power of four.
inline int64_t mixed_entries(int64_t width) {
  int64_t count = 1;
  while (count < kMostMixed && width % (4 * count) == 0 && width / (4 * count) >= kColumns) {
    count *= 4;
  }
  return count;
}

// Returns the sign by which an entry is multiplied before it is mixed: the last bit of SplitMix64.
MMGA_HOST_DEVICE MMGA_INLINE float mixing_sign(int64_t place) {
  uint64_t z = (static_cast<uint64_t>(place) + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return ((z ^ (z >> 31)) & 1) != 0 ? -1.0F : 1.0F;
}

}  // namespace mmga
