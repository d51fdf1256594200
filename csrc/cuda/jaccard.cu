// Jaccard distances of sparse rows: a warp takes a row. Sums are added in the order in which the
// CPU adds them, so that results are the CPU's. Bound by the caches' bandwidth.
#include "cuda/jaccard.cuh"
#include "cuda/launch.cuh"
#include "cuda/table.cuh"

namespace mmga {
namespace {

__global__ void __launch_bounds__(kWarpThreads)
    jaccard_rows_kernel(const Csr rows, const Csr inverted, const JaccardRows wanted,
                        const RowsOut out, uint64_t* scratch) {
  const bool fill = out.columns != nullptr;
  const Table table = Table::at(scratch, warp_number(), rows.rows, true);
  for (int64_t r = warp_number(); r < wanted.count; r += warp_count()) {
    const int64_t i = wanted.chosen[r];
    for (int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
      const int64_t column = rows.columns[e];
      const double weight = rows.values[e];
      for (int64_t f = inverted.offsets[column] + lane(); f < inverted.offsets[column + 1];
           f += kWarp) {
        const double value = inverted.values[f];
        if (wanted.upper && inverted.columns[f] < i) continue;
        table.add(inverted.columns[f], weight < value ? weight : value);
      }
      __syncwarp();  // the next column may have the same rows
    }
    const int64_t begin = fill ? out.offsets[r] : 0;
    const int64_t taken = table.drain(
        [&](int64_t j) {
          const bool kept = table.sums[j] >= wanted.least;
          if (!kept || !fill) table.sums[j] = 0;
          return kept;
        },
        [&](int64_t place, int64_t j) {
          if (!fill) return;
          out.columns[begin + place] = static_cast<int32_t>(j);
          out.values[begin + place] = jaccard_distance(table.sums[j]);
          table.sums[j] = 0;
        });
    if (out.lengths != nullptr && lane() == 0) out.lengths[r] = taken;
  }
}

// A block takes a row: every item first as if it had no overlap, then those that do.
template <typename T>
__global__ void __launch_bounds__(256)
    mix_distances_kernel(const MatrixView<T> squared, const Csr overlaps, const Mix mix,
                         double* result) {
  for (int64_t r = blockIdx.x; r < squared.rows; r += gridDim.x) {
    // No maximum: d is scaled. A maximum of 0: all d are 0, and so are the results.
    double divisor = mix.maxima == nullptr ? 0.0 : mix.maxima[r];
    if (mix.power == 2) divisor = divisor * divisor;
    const double factor = mix.maxima == nullptr ? mix.scale : 0.0;
    const T* row = squared.row(r);
    double* final_row = result + r * squared.width;
    const auto original = [&](int64_t g) {
      return original_distance(row[g], divisor, factor, mix.power);
    };
    for (int64_t g = threadIdx.x; g < squared.width; g += blockDim.x) {
      final_row[g] = (1 - mix.lambda) * 1.0 + mix.lambda * original(g);
    }
    __syncthreads();
    for (int64_t e = overlaps.offsets[r] + threadIdx.x; e < overlaps.offsets[r + 1];
         e += blockDim.x) {
      const int64_t g = overlaps.columns[e] - mix.first;
      final_row[g] = (1 - mix.lambda) * overlaps.values[e] + mix.lambda * original(g);
    }
  }
}

}  // namespace

cudaError_t launch_jaccard_rows(const Csr& rows, const Csr& inverted, const JaccardRows& wanted,
                                const RowsOut& out, const Scratch& scratch, cudaStream_t stream) {
  return launch(jaccard_rows_kernel, blocks_of(scratch, wanted.count), kWarpThreads, stream, rows,
                inverted, wanted, out, scratch.tables);
}

template <typename T>
cudaError_t launch_mix_distances(const MatrixView<T>& squared, const Csr& overlaps, const Mix& mix,
                                 double* result, cudaStream_t stream) {
  return launch(mix_distances_kernel<T>, blocks_for(squared.rows, 1), 256, stream, squared,
                overlaps, mix, result);
}

template cudaError_t launch_mix_distances(const MatrixView<float>&, const Csr&, const Mix&, double*,
                                          cudaStream_t);
template cudaError_t launch_mix_distances(const MatrixView<double>&, const Csr&, const Mix&,
                                          double*, cudaStream_t);

}  // namespace mmga
