// Which overlaps are kept, decided once for the CPU and CUDA.
#pragma once

#include <algorithm>

namespace mmga {

inline double jaccard_distance(double shared) {
  return std::clamp(1.0 - shared / (2.0 - shared), 0.0, 1.0);
}

// The least overlap whose distance is at most `limit` < 1: every step of jaccard_distance is
// monotonic in floating point too, so that comparing overlaps decides as comparing distances would.
inline double least_overlap(double limit) {
  double low = 0.0, high = 1.0;  // jaccard_distance(high) <= limit < jaccard_distance(low)
  for (;;) {
    const double middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) return high;
    (jaccard_distance(middle) <= limit ? high : low) = middle;
  }
}

}  // namespace mmga
