// Launchers of the kernels of certified ranks; pointers are the device's, errors those of the
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/certified.h"

namespace mmga {

// Counts, and writes how many pairs each row leaves undecided.
cudaError_t launch_count_certain(const TileView<float>& tile, const Intervals& intervals,
                                 int64_t* undecided, cudaStream_t stream);

// Writes the undecided pairs; those of row r begin at offsets[r].
cudaError_t launch_list_undecided(const TileView<float>& tile, const Intervals& intervals,
                                  const int64_t* offsets, Undecided* pairs, cudaStream_t stream);

// Pairs of rows, of float or int16_t and `width` numbers.
template <typename T>
struct PairRows {
  const T* x;
  const T* y;
  int64_t width;
  const Undecided* pairs;
  int64_t count;
};

// Decides pairs by products of their rows. Where these are bounded, `open` [P] takes the matches
// that each pair leaves undecided and `left` [P] 1 for pairs with any; else both are null.
template <typename T>
cudaError_t launch_refine_pairs(const Settlement& settlement, const PairRows<T>& rows,
                                Undecided* open, int64_t* left, cudaStream_t stream);

// Writes the pairs p of which offsets[p] is below offsets[p + 1], at offsets[p].
cudaError_t launch_keep_pairs(const Undecided* pairs, int64_t count, const int64_t* offsets,
                              Undecided* kept, cudaStream_t stream);

// Counts the bits of each of some rows.
cudaError_t launch_count_bits(const int32_t* bits, int64_t rows, int64_t words, int64_t* counts,
                              cudaStream_t stream);

// Writes the row and the column of every bit; those of row r begin at offsets[r].
cudaError_t launch_list_bits(const int32_t* bits, int64_t rows, int64_t words,
                             const int64_t* offsets, int32_t* pairs, cudaStream_t stream);

// Adds the pairs that have a bit to the rows' lists, as far as their keys allow.
cudaError_t launch_add_candidates(const BoundedLists& nearest, const BoundedLists& farthest,
                                  const FinePairs& pairs, cudaStream_t stream);

}  // namespace mmga
