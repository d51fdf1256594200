// Launchers of the kernels of Jaccard distances; pointers are the device's, errors those of the
// launch.
#pragma once

#include <cuda_runtime.h>

#include "common/knn.h"
#include "common/overlap.h"
#include "cuda/sparse_rows.cuh"

namespace mmga {

cudaError_t launch_jaccard_rows(const Csr& rows, const Csr& inverted, const JaccardRows& wanted,
                                const RowsOut& out, const Scratch& scratch, cudaStream_t stream);

template <typename T>
cudaError_t launch_mix_distances(const MatrixView<T>& squared, const Csr& overlaps, const Mix& mix,
                                 double* result, cudaStream_t stream);

}  // namespace mmga
