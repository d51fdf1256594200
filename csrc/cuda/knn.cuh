// Launchers of the neighbour kernels; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/knn.h"

namespace mmga {

// Updates the lists of the items. Where the tile is symmetric, its rows take the others above them;
// `transposed`: the items are its columns, which take the others below.
cudaError_t launch_update(const TileUpdate& update, bool transposed, cudaStream_t stream);

cudaError_t launch_ordered_candidates(const CandidateLists& lists, int64_t k, int32_t* index,
                                      float* distances, cudaStream_t stream);

cudaError_t launch_squared_distances(const ProductTile& tile, cudaStream_t stream);

// Bytes of one slot of `scratch`, of which every row has 2 k + 16.
template <typename T>
int64_t nearest_slot_bytes();

template <typename T>
cudaError_t launch_nearest_in_rows(const MatrixView<T>& distances, int64_t k, void* scratch,
                                   T* nearest, int32_t* index, cudaStream_t stream);

}  // namespace mmga
