// Launchers of the kernels of certified ranks; pointers are the device's, errors those of the
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "certified.h"

namespace mmga {

// Counts, and writes how many pairs each row leaves undecided.
cudaError_t launch_count_certain(const Intervals& intervals, int64_t* undecided,
                                 cudaStream_t stream);

// Writes the undecided pairs; those of row r begin at offsets[r].
cudaError_t launch_list_undecided(const Intervals& intervals, const int64_t* offsets,
                                  Undecided* pairs, cudaStream_t stream);

// Settles pairs by products of rows of float or int16_t. Where these are bounded, `open` [P] takes
// what stays open of each pair and `left` [P] 1 for those of which something does; else both null.
template <typename T>
cudaError_t launch_settle_pairs(const Settlement& settlement, const Undecided* pairs, int64_t count,
                                const T* x, const T* y, int64_t width, Undecided* open,
                                int64_t* left, cudaStream_t stream);

// Writes the pairs p of which offsets[p] is below offsets[p + 1], at offsets[p].
cudaError_t launch_keep_pairs(const Undecided* pairs, int64_t count, const int64_t* offsets,
                              Undecided* kept, cudaStream_t stream);

}  // namespace mmga
