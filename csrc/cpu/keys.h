// How rows of a tile become ranking keys: segments that fit the L1 cache, groups of keys with their
// minima, and NaN in place of items that are not counted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/dispatch.h"
#include "common/tile.h"

namespace mmga {
namespace {

constexpr int64_t kSegment = 2048;
constexpr int64_t kGroup = 64;

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

MMGA_INLINE bool any_lane(const Vector<float>::mask& mask) {
  int32_t some = 0;
  for (size_t lane = 0; lane < kVectorBytes / sizeof(float); ++lane) some |= mask[lane];
  return some != 0;
}

// Returns a bit for each of a group's comparisons.
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

// The smallest key of a group.
template <typename T>
MMGA_VECTOR_CLONES T group_minimum(const T* keys) {
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
MMGA_VECTOR_CLONES bool make_keys(const T* values, int64_t width, int64_t metric, T row_term,
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
MMGA_VECTOR_CLONES void exclude_camera(T* keys, int64_t width, int32_t camera,
                                       const int32_t* column_camera) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t j = 0; j < width; ++j) keys[j] = column_camera[j] == camera ? nan : keys[j];
}

// Makes the keys of a row's segment from column `start` on, and the minima of its whole groups;
// returns whether a key is NaN.
template <typename T>
bool make_segment(const TileView<T>& tile, int64_t row, int64_t start, int64_t width, T* keys,
                  T* minima) {
  const bool given = tile.metric == kGiven;
  return make_keys(tile.values + row * tile.row_stride + start, width, tile.metric,
                   given ? T(0) : tile.row_term[row], given ? nullptr : tile.column_term + start,
                   keys, minima);
}

// Calls visit(column) for the ignored items of a row's segment, columns counted from its start.
template <typename T, typename Visit>
void each_ignored(const TileView<T>& tile, int64_t row, int64_t start, int64_t width,
                  const Visit& visit) {
  const int64_t offset = tile.offset + start;
  const int64_t* end = tile.ignored_item + tile.ignored_start[row + 1];
  const int64_t* item = std::lower_bound(tile.ignored_item + tile.ignored_start[row], end, offset);
  for (; item < end && *item < offset + width; ++item) {
    if (*item >= offset) visit(*item - offset);  // always, where the items ascend
  }
}

// Sets the keys of a row's segment that are not counted to NaN, of which no comparison is true.
// Calls visit(column) for items that are ignored one by one; returns whether there may be others.
template <typename T, typename Visit>
bool exclude_items(const TileView<T>& tile, int64_t row, int64_t start, int64_t width, T* keys,
                   const Visit& visit) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  each_ignored(tile, row, start, width, [&](int64_t column) {
    visit(column);
    keys[column] = nan;
  });
  const bool by_camera = tile.row_camera != nullptr;
  if (by_camera) exclude_camera(keys, width, tile.row_camera[row], tile.column_camera + start);
  if (tile.removed != nullptr) {
    const bool* removed = tile.removed + row * tile.removed_stride + start;
    for (int64_t j = 0; j < width; ++j) keys[j] = removed[j] ? nan : keys[j];
  }
  return by_camera || tile.removed != nullptr;
}

}  // namespace
}  // namespace mmga
