// Launchers of the kernels that round features; pointers are the device's, errors those of the
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

// Rows of features, [rows, width].
struct FeatureRows {
  const float* values;
  int64_t rows, width;
};

// Mixes rows and writes them as integers of at most `most`, multiples of a part of their largest
// entry.
cudaError_t launch_int8_rows(const FeatureRows& x, float most, int8_t* numbers, float* units,
                             double* errors, cudaStream_t stream);

// Writes rows, brought to length 2^15 by their squared norms, as integers.
cudaError_t launch_int16_rows(const FeatureRows& x, const double* norms, int16_t* numbers,
                              double* errors, cudaStream_t stream);

}  // namespace mmga
