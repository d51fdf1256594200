// Launchers of sums of products in float64, in the one order of reference.py's interleaved_sum.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

// T: float, or uint16_t for the bits of a float16.
template <typename T>
cudaError_t launch_squared_norms(const T* x, int64_t stride, int64_t rows, int64_t width,
                                 double* norms, cudaStream_t stream);

cudaError_t launch_pair_products(const float* x, const float* y, int64_t width, const int64_t* rows,
                                 const int64_t* columns, int64_t pairs, double* products,
                                 cudaStream_t stream);

}  // namespace mmga
