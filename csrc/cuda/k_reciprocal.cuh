// Launchers of the kernels of k-reciprocal encoding; pointers are the device's, errors those of the
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/overlap.h"
#include "cuda/sparse_rows.cuh"

namespace mmga {

cudaError_t launch_reciprocal_sets(const NeighbourLists& lists, const RowsOut& out,
                                   const Scratch& scratch, cudaStream_t stream);

cudaError_t launch_expand_sets(const Csr& sets, const Csr& half, const RowsOut& out,
                               const Scratch& scratch, cudaStream_t stream);

template <typename T>
cudaError_t launch_listed_distances(const Csr& sets, const NeighbourLists& lists,
                                    const T* distances, double* result, cudaStream_t stream);

// The values of the rows are distances, which become weights.
cudaError_t launch_encode(const Csr& rows, const double* maxima, double* weights,
                          cudaStream_t stream);

cudaError_t launch_average_rows(const Csr& rows, const NeighbourLists& lists, const RowsOut& out,
                                const Scratch& scratch, cudaStream_t stream);

// Counts how often each column occurs in rows from `first` on; lengths are zero before.
cudaError_t launch_count_columns(const Csr& rows, int64_t first, int64_t* lengths,
                                 cudaStream_t stream);

// The entries of an inverted index.
struct Entries {
  int32_t* rows;
  double* values;
};

// Writes the inverted index, given its offsets; `next` [n] are zero, `loose` is as long as `out`.
cudaError_t launch_transpose_rows(const Csr& rows, int64_t first, const int64_t* inverted_offsets,
                                  int64_t* next, const Entries& loose, const Entries& out,
                                  const Scratch& scratch, cudaStream_t stream);

}  // namespace mmga
