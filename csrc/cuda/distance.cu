// Sums in float64, eight lanes to a row or a pair. Bound by one read of the rows.
#include "cuda/distance.cuh"
#include "cuda/launch.cuh"
#include "cuda/products.cuh"

namespace mmga {
namespace {

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    squared_norms_kernel(const MatrixView<T> x, double* norms) {
  for (int64_t first = warp_number() * kRowsPerWarp; first < x.rows;
       first += warp_count() * kRowsPerWarp) {
    const int64_t row = first + lane() / kAccumulators;
    const bool there = row < x.rows;
    const T* line = x.row(there ? row : 0);
    const double sum = interleaved_sum<Product>(line, line, there ? x.width : 0);
    if (there && lane() % kAccumulators == 0) norms[row] = sum;
  }
}

template <typename Term>
__global__ void __launch_bounds__(kWarpThreads)
    pair_sums_kernel(const PairSums pairs, double* sums) {
  for (int64_t first = warp_number() * kRowsPerWarp; first < pairs.count;
       first += warp_count() * kRowsPerWarp) {
    const int64_t pair = first + lane() / kAccumulators;
    const bool there = pair < pairs.count;
    const float* left = pairs.x + (there ? pairs.rows[pair] : 0) * pairs.width;
    const float* right = pairs.y + (there ? pairs.columns[pair] : 0) * pairs.width;
    const double sum = interleaved_sum<Term>(left, right, there ? pairs.width : 0);
    if (there && lane() % kAccumulators == 0) sums[pair] = sum;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_squared_norms(const MatrixView<T>& x, double* norms, cudaStream_t stream) {
  return launch(squared_norms_kernel<T>, blocks_for(x.rows, kWarpsPerBlock * kRowsPerWarp),
                kWarpThreads, stream, x, norms);
}

cudaError_t launch_pair_sums(const PairSums& pairs, double* sums, cudaStream_t stream) {
  const auto kernel =
      pairs.differences ? pair_sums_kernel<SquaredDifference> : pair_sums_kernel<Product>;
  return launch(kernel, blocks_for(pairs.count, kWarpsPerBlock * kRowsPerWarp), kWarpThreads,
                stream, pairs, sums);
}

template cudaError_t launch_squared_norms(const MatrixView<float>&, double*, cudaStream_t);
template cudaError_t launch_squared_norms(const MatrixView<uint16_t>&, double*, cudaStream_t);

}  // namespace mmga
