// Sums of products in float64, eight lanes to a row or a pair. Bound by one read of the rows.
#include "cuda/launch.cuh"
#include "cuda/products.cuh"
#include "cuda/sums.cuh"

namespace mmga {
namespace {

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    squared_norms_kernel(const T* x, int64_t stride, int64_t rows, int64_t width, double* norms) {
  for (int64_t first = warp_number() * kRowsPerWarp; first < rows;
       first += warp_count() * kRowsPerWarp) {
    const int64_t row = first + lane() / kAccumulators;
    const bool there = row < rows;
    const T* line = x + (there ? row : 0) * stride;
    const double sum = interleaved_sum(line, line, there ? width : 0);
    if (there && lane() % kAccumulators == 0) norms[row] = sum;
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    pair_products_kernel(const float* x, const float* y, int64_t width, const int64_t* rows,
                         const int64_t* columns, int64_t pairs, double* products) {
  for (int64_t first = warp_number() * kRowsPerWarp; first < pairs;
       first += warp_count() * kRowsPerWarp) {
    const int64_t pair = first + lane() / kAccumulators;
    const bool there = pair < pairs;
    const float* left = x + (there ? rows[pair] : 0) * width;
    const float* right = y + (there ? columns[pair] : 0) * width;
    const double sum = interleaved_sum(left, right, there ? width : 0);
    if (there && lane() % kAccumulators == 0) products[pair] = sum;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_squared_norms(const T* x, int64_t stride, int64_t rows, int64_t width,
                                 double* norms, cudaStream_t stream) {
  return launch(squared_norms_kernel<T>, blocks_for(rows, kWarpsPerBlock * kRowsPerWarp),
                kWarpThreads, stream, x, stride, rows, width, norms);
}

cudaError_t launch_pair_products(const float* x, const float* y, int64_t width, const int64_t* rows,
                                 const int64_t* columns, int64_t pairs, double* products,
                                 cudaStream_t stream) {
  return launch(pair_products_kernel, blocks_for(pairs, kWarpsPerBlock * kRowsPerWarp),
                kWarpThreads, stream, x, y, width, rows, columns, pairs, products);
}

template cudaError_t launch_squared_norms(const float*, int64_t, int64_t, int64_t, double*,
                                          cudaStream_t);
template cudaError_t launch_squared_norms(const uint16_t*, int64_t, int64_t, int64_t, double*,
                                          cudaStream_t);

}  // namespace mmga
