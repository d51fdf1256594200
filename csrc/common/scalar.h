// Arithmetic on single values, without torch: shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MMGA_HOST_DEVICE __host__ __device__
#else
#define MMGA_HOST_DEVICE
#endif

#define MMGA_INLINE __attribute__((always_inline)) inline

namespace mmga {

template <typename To, typename From>
MMGA_HOST_DEVICE MMGA_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// Converts the bits of a float16, without branches or table look-ups: this vectorises.
MMGA_HOST_DEVICE MMGA_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const bool special = (magnitude & 0x0f800000) == 0x0f800000;  // infinity and NaN
  // A half's exponent, read as a float's, is too small by 112: multiplying also fits subnormals.
  const float value = bit_cast<float>(magnitude | (special ? 0x70000000u : 0u));
  return bit_cast<float>(bit_cast<uint32_t>(special ? value : value * 0x1p112f) | sign);
}

// How values of a tile become ranking keys: they are keys, or they are inner products.
enum Metric : int64_t { kGiven = 0, kCosine = 1, kEuclidean = 2 };

// Turns a value into a ranking key; X is T or a vector of T.
template <typename T, typename X>
MMGA_HOST_DEVICE MMGA_INLINE void make_key(int64_t metric, T row_term, const X& column_term,
                                           const X& value, X& key) {
  if (metric == kCosine) {
    key = 1 - (value * row_term) * column_term;
  } else if (metric == kEuclidean) {
    key = (row_term + column_term) - 2 * value;
    key = key < 0 ? X{} : key;  // NaN stays NaN
  } else {
    key = value;
  }
}

// Turns an inner product into a squared distance: 2 - 2 cos where the terms are 1 / norm.
MMGA_HOST_DEVICE MMGA_INLINE float squared_distance(float product, float row_term,
                                                    float column_term, bool cosine) {
  const float d = cosine ? 2 * (1 - (product * row_term) * column_term)
                         : (row_term + column_term) - 2 * product;
  return d > 0 ? d : 0;  // never -0, whose bits would order last
}

}  // namespace mmga
