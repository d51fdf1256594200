// Launchers of the neighbour kernels; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

// A tile of inner products of items and others, and the lists of the items; see select_neighbours
// in reference.py.
struct Offer {
  uint64_t* candidates;  // [N, slots]: the bits of a float >= 0 above an index
  int32_t* counts;
  float* thresholds;
  float* maxima;
  int64_t slots;
  int64_t k;
  const float* products;
  int64_t item_step;  // from one item's products to the next one's
  int64_t other_step;
  int64_t items;
  int64_t others;
  const float* item_term;
  const float* other_term;
  int64_t first_item;
  int64_t first_other;
  bool cosine;
  bool transposed;  // the items are the tile's columns
  bool symmetric;   // rows take the others above them, columns those below
  float* kept;      // distances of the items before `queries` to those from there on, or null
  int64_t queries;
  int64_t kept_step;
};

cudaError_t launch_offer(const Offer& offer, cudaStream_t stream);

cudaError_t launch_ordered_candidates(const uint64_t* candidates, const int32_t* counts,
                                      int64_t items, int64_t slots, int64_t k, int32_t* index,
                                      float* distances, cudaStream_t stream);

cudaError_t launch_squared_distances(float* tile, int64_t stride, int64_t rows, int64_t columns,
                                     const float* row_term, const float* column_term, bool cosine,
                                     cudaStream_t stream);

// Bytes of one slot of `scratch`, of which every row has 2 k + 16.
template <typename T>
int64_t nearest_slot_bytes();

template <typename T>
cudaError_t launch_nearest_in_rows(const T* distances, int64_t stride, int64_t rows,
                                   int64_t columns, int64_t k, void* scratch, T* nearest,
                                   int32_t* index, cudaStream_t stream);

}  // namespace mmga
