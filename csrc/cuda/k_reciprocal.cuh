// Launchers of the re-ranking kernels; pointers are the device's, errors those of the launch.
//
// Rows whose lengths are not known beforehand are computed twice: first for their lengths, with
// `out` null, then into place.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

struct Csr {
  const int64_t* offsets;
  const int32_t* columns;
  const double* values;
};

// Rows that are written: lengths first, then columns and, where they have any, values.
struct RowsOut {
  int64_t* lengths;        // [R], or null
  const int64_t* offsets;  // [R + 1]
  int32_t* columns;        // null: lengths are wanted
  double* values;
};

// A table for each of so many warps, zero; see table.cuh.
struct Scratch {
  uint64_t* tables;
  int64_t warps;
};

// Bytes of one warp's table.
int64_t table_bytes(int64_t columns, bool with_sums);

// Turns lengths in place into offsets: [n] and one more, from 0.
cudaError_t launch_offsets(int64_t* lengths, int64_t n, cudaStream_t stream);

cudaError_t launch_reciprocal_sets(const int32_t* neighbours, int64_t width, int64_t n, int64_t k,
                                   const RowsOut& out, const Scratch& scratch, cudaStream_t stream);

cudaError_t launch_expand_sets(const Csr& sets, const Csr& half, int64_t n, const RowsOut& out,
                               const Scratch& scratch, cudaStream_t stream);

template <typename T>
cudaError_t launch_listed_distances(const Csr& sets, int64_t n, const int32_t* neighbours,
                                    const T* distances, int64_t width, double* result,
                                    cudaStream_t stream);

// In place: distances become weights.
cudaError_t launch_encode(const int64_t* offsets, int64_t n, const double* distances,
                          const double* maxima, double* weights, cudaStream_t stream);

cudaError_t launch_average_rows(const Csr& rows, int64_t n, const int32_t* neighbours,
                                int64_t width, int64_t k2, const RowsOut& out,
                                const Scratch& scratch, cudaStream_t stream);

// How often each column occurs in rows from `first` on; lengths are zero before.
cudaError_t launch_count_columns(const Csr& rows, int64_t n, int64_t first, int64_t* lengths,
                                 cudaStream_t stream);

// The inverted index, given its offsets; `next` [n] are zero, `loose_` as long as the result.
cudaError_t launch_transpose_rows(const Csr& rows, int64_t n, int64_t first,
                                  const int64_t* inverted_offsets, int64_t* next,
                                  int32_t* loose_rows, double* loose_values, int32_t* out_rows,
                                  double* out_values, const Scratch& scratch, cudaStream_t stream);

// Entries whose overlap is at least `least`; `upper`: none before a row's own.
cudaError_t launch_jaccard_rows(const Csr& rows, const Csr& inverted, int64_t n,
                                const int64_t* chosen, int64_t count, double least, bool upper,
                                const RowsOut& out, const Scratch& scratch, cudaStream_t stream);

// The rule of one call of mix_distances.
struct Mix {
  int64_t first;
  double lambda;
  int64_t power;
  double scale;
};

template <typename T>
cudaError_t launch_mix_distances(const T* squared, int64_t stride, int64_t rows, int64_t gallery,
                                 const double* maxima, const Csr& overlaps, const Mix& mix,
                                 double* result, cudaStream_t stream);

}  // namespace mmga
