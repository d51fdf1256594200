// Sparse rows that kernels write; pointers are the device's, errors those of the launch.
//
// Rows whose lengths are not known beforehand are computed twice: first for their lengths, with
// `columns` null, then into place.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

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

}  // namespace mmga
