// Launchers of the ranking kernels; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/tile.h"

namespace mmga {

template <typename T>
cudaError_t launch_count_preceding(const TileView<T>& tile, const RankCounts<T>& counts,
                                   cudaStream_t stream);

// `sorted_item` and `sorted_key` are scratch, as long as all matches.
template <typename T>
cudaError_t launch_sort_matches(const TileView<T>& tile, const MatchLists<T>& lists,
                                int64_t* sorted_item, T* sorted_key, cudaStream_t stream);

}  // namespace mmga
