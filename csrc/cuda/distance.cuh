// Launchers of sums of products in float64, in the one order of mmga/ops/reference.
#pragma once

#include <cuda_runtime.h>

#include "common/knn.h"

namespace mmga {

// T: float, or uint16_t for the bits of a float16.
template <typename T>
cudaError_t launch_squared_norms(const MatrixView<T>& x, double* norms, cudaStream_t stream);

cudaError_t launch_pair_sums(const PairSums& pairs, double* sums, cudaStream_t stream);

}  // namespace mmga
