// How rows of a tile become ranking keys, shared by what counts them: segments that stay in the L1
// cache, groups of keys with their minima, and items that are left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "bits.h"
#include "common.h"
#include "ranking.h"

namespace mmga {
namespace {

constexpr int64_t kSegment = 2048;
constexpr int64_t kGroup = 64;

// A vector that registers hold: comparisons of longer ones are taken apart lane by lane.
#if defined(__x86_64__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
MMGA_INLINE void load(T& to, const void* from) {
  std::memcpy(&to, from, sizeof(T));
}

// The smallest lane of a vector without NaN.
template <typename T>
MMGA_INLINE T smallest_lane(const typename Vector<T>::type& given) {
  typename Vector<T>::type vector = given;
  constexpr int kLanes = kVectorBytes / sizeof(T);
#if defined(__GNUC__) && !defined(__clang__)
  for (int half = kLanes / 2; half > 0; half /= 2) {
    typename Vector<T>::mask across;
    for (int lane = 0; lane < kLanes; ++lane) across[lane] = lane ^ half;
    const typename Vector<T>::type other = __builtin_shuffle(vector, across);
    vector = other < vector ? other : vector;
  }
  return vector[0];
#else
  T result = vector[0];
  for (int lane = 1; lane < kLanes; ++lane) result = vector[lane] < result ? vector[lane] : result;
  return result;
#endif
}

// A bit for each of a group's comparisons.
MMGA_INLINE uint64_t bits_of_masks(const Vector<float>::mask* masks) {
  constexpr int kLanes = kVectorBytes / sizeof(float);
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  uint8_t bytes[kGroup];
  for (int v = 0; v < kGroup / kLanes; ++v) {
    const Bytes ones = __builtin_convertvector(masks[v] & 1, Bytes);
    std::memcpy(bytes + v * kLanes, &ones, sizeof ones);
  }
  return bits_of_bytes(bytes);
}

// Turns a tile's value into a ranking key, X being T or a vector of T.
template <typename T, typename X>
MMGA_INLINE void make_key(int64_t metric, T row_term, const X& column_term, const X& value,
                          X& key) {
  if (metric == kCosine) {
    key = 1 - (value * row_term) * column_term;
  } else if (metric == kEuclidean) {
    key = (row_term + column_term) - 2 * value;
    key = key < 0 ? X{} : key;  // NaN stays NaN
  } else {
    key = value;
  }
}

// The smallest key of a group.
template <typename T>
MMGA_INLINE T group_minimum_body(const T* keys) {
  using V = typename Vector<T>::type;
  V low = V{} + std::numeric_limits<T>::infinity();
  for (int64_t j = 0; j < kGroup; j += kVectorBytes / sizeof(T)) {
    V x;
    load(x, keys + j);
    low = x < low ? x : low;
  }
  return smallest_lane<T>(low);
}

// Writes the keys of a segment and the minima of its whole groups; returns whether a key is NaN.
template <typename T>
MMGA_INLINE bool make_keys_of(const T* values, int64_t width, int64_t metric, T row_term,
                              const T* column_term, T* keys, T* minima) {
  using V = typename Vector<T>::type;
  using M = typename Vector<T>::mask;
  M bad = M{};
  for (int64_t start = 0; start + kGroup <= width; start += kGroup) {
    V low = V{} + std::numeric_limits<T>::infinity();
    for (int64_t j = start; j < start + kGroup; j += kVectorBytes / sizeof(T)) {
      V value;
      V term = V{};
      V key;
      load(value, values + j);
      if (metric != kGiven) load(term, column_term + j);
      make_key<T, V>(metric, row_term, term, value, key);
      bad |= key != key;
      low = key < low ? key : low;
      std::memcpy(keys + j, &key, sizeof(key));
    }
    minima[start / kGroup] = smallest_lane<T>(low);
  }
  bool any = false;
  for (unsigned lane = 0; lane < kVectorBytes / sizeof(T); ++lane) any |= bad[lane] != 0;
  for (int64_t j = width / kGroup * kGroup; j < width; ++j) {
    make_key<T, T>(metric, row_term, metric == kGiven ? T(0) : column_term[j], values[j], keys[j]);
    any |= keys[j] != keys[j];
  }
  return any;
}

template <typename T>
MMGA_INLINE bool make_keys_body(const T* values, int64_t width, int64_t metric, T row_term,
                                const T* column_term, T* keys, T* minima) {
  // A constant metric takes the choice out of the loop.
  if (metric == kCosine) {
    return make_keys_of<T>(values, width, kCosine, row_term, column_term, keys, minima);
  }
  if (metric == kEuclidean) {
    return make_keys_of<T>(values, width, kEuclidean, row_term, column_term, keys, minima);
  }
  return make_keys_of<T>(values, width, kGiven, row_term, column_term, keys, minima);
}

template <typename T>
MMGA_INLINE void leave_out_camera_body(T* keys, int64_t width, int32_t camera,
                                       const int32_t* column_camera) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t j = 0; j < width; ++j) keys[j] = column_camera[j] == camera ? nan : keys[j];
}

// A template cannot be compiled for several instruction sets, an overload can.
#define MMGA_KEY_KERNELS(T)                                                                      \
  [[maybe_unused]] MMGA_VECTOR_CLONES bool make_keys(const T* values, int64_t width,             \
                                                     int64_t metric, T row_term,                 \
                                                     const T* column_term, T* keys, T* minima) { \
    return make_keys_body<T>(values, width, metric, row_term, column_term, keys, minima);        \
  }                                                                                              \
  [[maybe_unused]] MMGA_VECTOR_CLONES T group_minimum(const T* keys) {                           \
    return group_minimum_body<T>(keys);                                                          \
  }                                                                                              \
  [[maybe_unused]] MMGA_VECTOR_CLONES void leave_out_camera(                                     \
      T* keys, int64_t width, int32_t camera, const int32_t* column_camera) {                    \
    leave_out_camera_body<T>(keys, width, camera, column_camera);                                \
  }
MMGA_KEY_KERNELS(float)
MMGA_KEY_KERNELS(double)
#undef MMGA_KEY_KERNELS

// Makes the items of a row's segment that are not counted NaN, of which no comparison is true.
// Calls `left_out(column)` for items that are named one by one; returns whether there may be
// others.
template <typename T, typename LeftOut>
bool leave_out(const Tile<T>& tile, int64_t row, int64_t start, int64_t width, T* keys,
               const LeftOut& left_out) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t offset = tile.offset + start;
  const int64_t* end = tile.ignored_item + tile.ignored_start[row + 1];
  const int64_t* item = std::lower_bound(tile.ignored_item + tile.ignored_start[row], end, offset);
  for (; item < end && *item < offset + width; ++item) {
    left_out(*item - offset);
    keys[*item - offset] = nan;
  }
  const bool by_camera = tile.row_camera != nullptr && tile.column_camera != nullptr;
  if (by_camera) leave_out_camera(keys, width, tile.row_camera[row], tile.column_camera + start);
  if (tile.removed != nullptr) {
    const bool* removed = tile.removed + row * tile.removed_stride + start;
    for (int64_t j = 0; j < width; ++j) keys[j] = removed[j] ? nan : keys[j];
  }
  return by_camera || tile.removed != nullptr;
}

}  // namespace
}  // namespace mmga
