// Launcher of count_impostors; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include "common/tile.h"

namespace mmga {

template <typename T>
cudaError_t launch_count_impostors(const TileView<T>& tile, const Histogram& histogram,
                                   cudaStream_t stream);

}  // namespace mmga
