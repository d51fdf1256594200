// k-reciprocal sets, their encoding and Jaccard rows as CSR: a warp takes a row.
//
// Rows are made in a warp's own table in device memory (table.cuh) and handed out in ascending
// order. What is added to one sum is added in the order in which the CPU adds it, so that results
// are the CPU's, but for the library's exp. Bound by the latency of scattered reads, which many
// warps hide, and of Jaccard rows by the caches' bandwidth.
#include "cuda/k_reciprocal.cuh"
#include "cuda/launch.cuh"
#include "cuda/table.cuh"

namespace mmga {
namespace {

constexpr int kScanThreads = 1024;

// One block; every thread sums a run of its own, and warps add up the runs.
__global__ void __launch_bounds__(kScanThreads) offsets_kernel(int64_t* lengths, int64_t n) {
  MMGA_SHARED(int64_t, of_warps, kWarp);
  const int64_t run = (n + kScanThreads - 1) / kScanThreads;
  const int64_t begin = threadIdx.x * run < n ? threadIdx.x * run : n;
  const int64_t end = begin + run < n ? begin + run : n;
  int64_t own = 0;
  for (int64_t i = begin; i < end; ++i) own += lengths[i];
  const int64_t up_to = warp_running_sum(own);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane() == kWarp - 1) of_warps[warp] = up_to;
  __syncthreads();
  if (warp == 0) {
    const int64_t sum = of_warps[lane()];
    const int64_t before = warp_running_sum(sum) - sum;
    of_warps[lane()] = before;
  }
  __syncthreads();
  int64_t place = of_warps[warp] + up_to - own;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t length = lengths[i];
    lengths[i] = place;
    place += length;
  }
  if (threadIdx.x == kScanThreads - 1) lengths[n] = place;
}

// Place of `item` in a list, -1 where it is not there; the same in all lanes.
__device__ int64_t place_in(const int32_t* list, int64_t length, int32_t item) {
  for (int64_t first = 0; first < length; first += kWarp) {
    const int64_t t = first + lane();
    const unsigned found = __ballot_sync(kAllLanes, t < length && list[t] == item);
    if (found != 0) return first + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

struct KeepAll {
  __device__ bool operator()(int64_t) const { return true; }
};

// Hands out a row of which columns alone are wanted.
__device__ void write_set(const Table& table, int64_t row, const RowsOut& out) {
  int32_t* columns = out.columns == nullptr ? nullptr : out.columns + out.offsets[row];
  const int64_t count = table.drain(KeepAll(), [&](int64_t place, int64_t column) {
    if (columns != nullptr) columns[place] = static_cast<int32_t>(column);
  });
  if (out.lengths != nullptr && lane() == 0) out.lengths[row] = count;
}

__global__ void __launch_bounds__(kWarpThreads)
    reciprocal_sets_kernel(const int32_t* neighbours, int64_t width, int64_t n, int64_t k,
                           const RowsOut out, uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), n, false);
  for (int64_t i = warp_number(); i < n; i += warp_count()) {
    const int32_t* list = neighbours + i * width;
    for (int64_t t = 0; t < k; ++t) {
      const int64_t j = list[t];
      const bool mutual = place_in(neighbours + j * width, k, static_cast<int32_t>(i)) >= 0;
      if (mutual && lane() == 0) table.insert(j);
    }
    write_set(table, i, out);
  }
}

// Whether an ascending list holds an item.
__device__ bool in_set(const int32_t* set, int64_t size, int32_t item) {
  int64_t low = 0;
  int64_t high = size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (set[middle] < item) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < size && set[low] == item;
}

__global__ void __launch_bounds__(kWarpThreads)
    expand_sets_kernel(const Csr sets, const Csr half, int64_t n, const RowsOut out,
                       uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), n, false);
  for (int64_t i = warp_number(); i < n; i += warp_count()) {
    const int32_t* own = sets.columns + sets.offsets[i];
    const int64_t size = sets.offsets[i + 1] - sets.offsets[i];
    for (int64_t t = lane(); t < size; t += kWarp) table.insert(own[t]);
    for (int64_t t = 0; t < size; ++t) {
      const int64_t j = own[t];
      const int32_t* other = half.columns + half.offsets[j];
      const int64_t length = half.offsets[j + 1] - half.offsets[j];
      int64_t common = 0;
      for (int64_t u = lane(); u < length; u += kWarp) common += in_set(own, size, other[u]);
      common = warp_sum(common);
      if (3 * common > 2 * length) {
        for (int64_t u = lane(); u < length; u += kWarp) table.insert(other[u]);
      }
    }
    write_set(table, i, out);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    listed_distances_kernel(const Csr sets, int64_t n, const int32_t* neighbours,
                            const T* distances, int64_t width, double* result) {
  for (int64_t i = warp_number(); i < n; i += warp_count()) {
    for (int64_t e = sets.offsets[i]; e < sets.offsets[i + 1]; ++e) {
      const int64_t j = sets.columns[e];
      int64_t row = i;
      int64_t place = place_in(neighbours + i * width, width, static_cast<int32_t>(j));
      if (place < 0) {
        row = j;
        place = place_in(neighbours + j * width, width, static_cast<int32_t>(i));
      }
      if (lane() == 0) {
        result[e] = place < 0 ? -1.0 : static_cast<double>(distances[row * width + place]);
      }
    }
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    encode_kernel(const int64_t* offsets, int64_t n, const double* distances, const double* maxima,
                  double* weights) {
  for (int64_t i = warp_number(); i < n; i += warp_count()) {
    const int64_t first = offsets[i];
    const int64_t last = offsets[i + 1];
    double least = 0;
    if (maxima == nullptr) {
      least = static_cast<double>(INFINITY);
      for (int64_t e = first + lane(); e < last; e += kWarp) {
        least = distances[e] < least ? distances[e] : least;
      }
      least = warp_min(least);
    }
    double total = 0;
    for (int64_t begin = first; begin < last; begin += kWarp) {
      const int64_t e = begin + lane();
      double weight = 0;
      if (e < last) {
        double scaled = distances[e] - least;
        if (maxima != nullptr) scaled = maxima[i] > 0 ? distances[e] / maxima[i] : 0.0;
        weight = exp(-scaled);
        weights[e] = weight;
      }
      // In the order of entries, as on the CPU; lanes past the end add 0.
      for (int from = 0; from < kWarp; ++from) total += __shfl_sync(kAllLanes, weight, from);
    }
    for (int64_t e = first + lane(); e < last; e += kWarp) weights[e] = weights[e] / total;
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    average_rows_kernel(const Csr rows, int64_t n, const int32_t* neighbours, int64_t width,
                        int64_t k2, const RowsOut out, uint64_t* scratch) {
  const bool fill = out.columns != nullptr;
  const Table table = Table::at(scratch, warp_number(), n, true);
  for (int64_t i = warp_number(); i < n; i += warp_count()) {
    for (int64_t t = 0; t < k2; ++t) {
      const int64_t j = neighbours[i * width + t];
      for (int64_t e = rows.offsets[j] + lane(); e < rows.offsets[j + 1]; e += kWarp) {
        if (fill) {
          table.add(rows.columns[e], rows.values[e]);
        } else {
          table.insert(rows.columns[e]);
        }
      }
      __syncwarp();  // the next row may have the same columns
    }
    if (!fill) {
      write_set(table, i, out);
      continue;
    }
    const int64_t begin = out.offsets[i];
    table.drain(KeepAll(), [&](int64_t place, int64_t column) {
      out.columns[begin + place] = static_cast<int32_t>(column);
      out.values[begin + place] = table.sums[column] / static_cast<double>(k2);
      table.sums[column] = 0;
    });
  }
}

__global__ void __launch_bounds__(256)
    count_columns_kernel(const Csr rows, int64_t n, int64_t first, int64_t* lengths) {
  const int64_t end = rows.offsets[n];
  for (int64_t e = rows.offsets[first] + thread_number(); e < end; e += thread_count()) {
    atomicAdd(reinterpret_cast<unsigned long long*>(lengths) + rows.columns[e], 1ull);
  }
}

// Puts every entry somewhere among those of its column.
__global__ void __launch_bounds__(kWarpThreads)
    scatter_rows_kernel(const Csr rows, int64_t n, int64_t first, const int64_t* inverted_offsets,
                        int64_t* next, int32_t* loose_rows, double* loose_values) {
  for (int64_t i = first + warp_number(); i < n; i += warp_count()) {
    for (int64_t e = rows.offsets[i] + lane(); e < rows.offsets[i + 1]; e += kWarp) {
      const int64_t column = rows.columns[e];
      const int64_t slot = inverted_offsets[column] +
                           static_cast<int64_t>(atomicAdd(
                               reinterpret_cast<unsigned long long*>(next) + column, 1ull));
      loose_rows[slot] = static_cast<int32_t>(i);
      loose_values[slot] = rows.values[e];
    }
  }
}

// Puts the entries of every column in the order of rows.
__global__ void __launch_bounds__(kWarpThreads)
    order_columns_kernel(const int64_t* inverted_offsets, int64_t n, const int32_t* loose_rows,
                         const double* loose_values, int32_t* out_rows, double* out_values,
                         uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), n, true);
  for (int64_t column = warp_number(); column < n; column += warp_count()) {
    const int64_t begin = inverted_offsets[column];
    for (int64_t e = begin + lane(); e < inverted_offsets[column + 1]; e += kWarp) {
      table.add(loose_rows[e], loose_values[e]);
    }
    table.drain(KeepAll(), [&](int64_t place, int64_t row) {
      out_rows[begin + place] = static_cast<int32_t>(row);
      out_values[begin + place] = table.sums[row];
      table.sums[row] = 0;
    });
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    jaccard_rows_kernel(const Csr rows, const Csr inverted, int64_t n, const int64_t* chosen,
                        int64_t count, double least, bool upper, const RowsOut out,
                        uint64_t* scratch) {
  const bool fill = out.columns != nullptr;
  const Table table = Table::at(scratch, warp_number(), n, true);
  for (int64_t r = warp_number(); r < count; r += warp_count()) {
    const int64_t i = chosen[r];
    for (int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
      const int64_t column = rows.columns[e];
      const double weight = rows.values[e];
      for (int64_t f = inverted.offsets[column] + lane(); f < inverted.offsets[column + 1];
           f += kWarp) {
        const double value = inverted.values[f];
        if (upper && inverted.columns[f] < i) continue;
        table.add(inverted.columns[f], weight < value ? weight : value);
      }
      __syncwarp();  // the next column may have the same rows
    }
    const int64_t begin = fill ? out.offsets[r] : 0;
    const int64_t taken = table.drain(
        [&](int64_t j) {
          const bool kept = table.sums[j] >= least;
          if (!kept || !fill) table.sums[j] = 0;
          return kept;
        },
        [&](int64_t place, int64_t j) {
          if (!fill) return;
          const double distance = 1.0 - table.sums[j] / (2.0 - table.sums[j]);
          out.columns[begin + place] = static_cast<int32_t>(j);
          out.values[begin + place] = distance > 0.0 ? distance : 0.0;
          table.sums[j] = 0;
        });
    if (out.lengths != nullptr && lane() == 0) out.lengths[r] = taken;
  }
}

// A block takes a row: every item first as if it had no overlap, then those that do.
template <typename T>
__global__ void __launch_bounds__(256)
    mix_distances_kernel(const T* squared, int64_t stride, int64_t rows, int64_t gallery,
                         const double* maxima, const Csr overlaps, const Mix mix, double* result) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    // No maximum: d is scaled. A maximum of 0: all d are 0, and so is what they become.
    double divisor = maxima == nullptr ? 0.0 : maxima[r];
    if (mix.power == 2) divisor = divisor * divisor;
    const double factor = maxima == nullptr ? mix.scale : 0.0;
    const T* row = squared + r * stride;
    double* final_row = result + r * gallery;
    const auto original = [&](int64_t g) {
      const double d = row[g];
      if (divisor > 0) return (mix.power == 2 ? d * d : d) / divisor;
      return d * factor;
    };
    for (int64_t g = threadIdx.x; g < gallery; g += blockDim.x) {
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

// A warp for each row, but no more than there are tables.
int64_t blocks_of(const Scratch& scratch, int64_t rows) {
  return std::min(scratch.warps / kWarpsPerBlock, blocks_for(rows, kWarpsPerBlock));
}

}  // namespace

int64_t table_bytes(int64_t columns, bool with_sums) {
  return Table::units_of(columns, with_sums) * 8;
}

cudaError_t launch_offsets(int64_t* lengths, int64_t n, cudaStream_t stream) {
  return launch(offsets_kernel, 1, kScanThreads, stream, lengths, n);
}

cudaError_t launch_reciprocal_sets(const int32_t* neighbours, int64_t width, int64_t n, int64_t k,
                                   const RowsOut& out, const Scratch& scratch,
                                   cudaStream_t stream) {
  return launch(reciprocal_sets_kernel, blocks_of(scratch, n), kWarpThreads, stream, neighbours,
                width, n, k, out, scratch.tables);
}

cudaError_t launch_expand_sets(const Csr& sets, const Csr& half, int64_t n, const RowsOut& out,
                               const Scratch& scratch, cudaStream_t stream) {
  return launch(expand_sets_kernel, blocks_of(scratch, n), kWarpThreads, stream, sets, half, n, out,
                scratch.tables);
}

template <typename T>
cudaError_t launch_listed_distances(const Csr& sets, int64_t n, const int32_t* neighbours,
                                    const T* distances, int64_t width, double* result,
                                    cudaStream_t stream) {
  return launch(listed_distances_kernel<T>, blocks_for(n, kWarpsPerBlock), kWarpThreads, stream,
                sets, n, neighbours, distances, width, result);
}

cudaError_t launch_encode(const int64_t* offsets, int64_t n, const double* distances,
                          const double* maxima, double* weights, cudaStream_t stream) {
  return launch(encode_kernel, blocks_for(n, kWarpsPerBlock), kWarpThreads, stream, offsets, n,
                distances, maxima, weights);
}

cudaError_t launch_average_rows(const Csr& rows, int64_t n, const int32_t* neighbours,
                                int64_t width, int64_t k2, const RowsOut& out,
                                const Scratch& scratch, cudaStream_t stream) {
  return launch(average_rows_kernel, blocks_of(scratch, n), kWarpThreads, stream, rows, n,
                neighbours, width, k2, out, scratch.tables);
}

cudaError_t launch_count_columns(const Csr& rows, int64_t n, int64_t first, int64_t* lengths,
                                 cudaStream_t stream) {
  return launch(count_columns_kernel, blocks_for(n - first, 8), 256, stream, rows, n, first,
                lengths);
}

cudaError_t launch_transpose_rows(const Csr& rows, int64_t n, int64_t first,
                                  const int64_t* inverted_offsets, int64_t* next,
                                  int32_t* loose_rows, double* loose_values, int32_t* out_rows,
                                  double* out_values, const Scratch& scratch, cudaStream_t stream) {
  const cudaError_t error =
      launch(scatter_rows_kernel, blocks_for(n - first, kWarpsPerBlock), kWarpThreads, stream, rows,
             n, first, inverted_offsets, next, loose_rows, loose_values);
  if (error != cudaSuccess) return error;
  return launch(order_columns_kernel, blocks_of(scratch, n), kWarpThreads, stream, inverted_offsets,
                n, loose_rows, loose_values, out_rows, out_values, scratch.tables);
}

cudaError_t launch_jaccard_rows(const Csr& rows, const Csr& inverted, int64_t n,
                                const int64_t* chosen, int64_t count, double least, bool upper,
                                const RowsOut& out, const Scratch& scratch, cudaStream_t stream) {
  return launch(jaccard_rows_kernel, blocks_of(scratch, count), kWarpThreads, stream, rows,
                inverted, n, chosen, count, least, upper, out, scratch.tables);
}

template <typename T>
cudaError_t launch_mix_distances(const T* squared, int64_t stride, int64_t rows, int64_t gallery,
                                 const double* maxima, const Csr& overlaps, const Mix& mix,
                                 double* result, cudaStream_t stream) {
  return launch(mix_distances_kernel<T>, blocks_for(rows, 1), 256, stream, squared, stride, rows,
                gallery, maxima, overlaps, mix, result);
}

template cudaError_t launch_listed_distances(const Csr&, int64_t, const int32_t*, const float*,
                                             int64_t, double*, cudaStream_t);
template cudaError_t launch_listed_distances(const Csr&, int64_t, const int32_t*, const double*,
                                             int64_t, double*, cudaStream_t);
template cudaError_t launch_mix_distances(const float*, int64_t, int64_t, int64_t, const double*,
                                          const Csr&, const Mix&, double*, cudaStream_t);
template cudaError_t launch_mix_distances(const double*, int64_t, int64_t, int64_t, const double*,
                                          const Csr&, const Mix&, double*, cudaStream_t);

}  // namespace mmga
