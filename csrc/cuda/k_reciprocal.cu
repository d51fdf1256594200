// k-reciprocal sets and their encoding as CSR: a warp takes a row.
//
// Rows are made in a warp's own table in device memory (table.cuh) and drained in ascending order.
// Sums are added in the order in which the CPU adds them, so that results are the CPU's, but for
// the library's exp. Bound by the latency of scattered reads, which many warps hide.
#include "cuda/k_reciprocal.cuh"
#include "cuda/launch.cuh"
#include "cuda/search.cuh"
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

// Drains a row of which columns alone are wanted.
__device__ void write_set(const Table& table, int64_t row, const RowsOut& out) {
  int32_t* columns = out.columns == nullptr ? nullptr : out.columns + out.offsets[row];
  const int64_t count = table.drain(KeepAll(), [&](int64_t place, int64_t column) {
    if (columns != nullptr) columns[place] = static_cast<int32_t>(column);
  });
  if (out.lengths != nullptr && lane() == 0) out.lengths[row] = count;
}

__global__ void __launch_bounds__(kWarpThreads)
    reciprocal_sets_kernel(const NeighbourLists lists, const RowsOut out, uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), lists.items, false);
  for (int64_t i = warp_number(); i < lists.items; i += warp_count()) {
    const int32_t* list = lists.index + i * lists.width;
    for (int64_t t = 0; t < lists.length; ++t) {
      const int64_t j = list[t];
      const int32_t* other = lists.index + j * lists.width;
      const bool mutual = place_in(other, lists.length, static_cast<int32_t>(i)) >= 0;
      if (mutual && lane() == 0) table.insert(j);
    }
    write_set(table, i, out);
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    expand_sets_kernel(const Csr sets, const Csr half, const RowsOut out, uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), sets.rows, false);
  for (int64_t i = warp_number(); i < sets.rows; i += warp_count()) {
    const int32_t* own = sets.columns + sets.offsets[i];
    const int64_t size = sets.offsets[i + 1] - sets.offsets[i];
    for (int64_t t = lane(); t < size; t += kWarp) table.insert(own[t]);
    for (int64_t t = 0; t < size; ++t) {
      const int64_t j = own[t];
      const int32_t* other = half.columns + half.offsets[j];
      const int64_t length = half.offsets[j + 1] - half.offsets[j];
      int64_t common = 0;
      for (int64_t u = lane(); u < length; u += kWarp) common += holds(own, 0, size, other[u]);
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
    listed_distances_kernel(const Csr sets, const NeighbourLists lists, const T* distances,
                            double* result) {
  const int64_t width = lists.width;
  for (int64_t i = warp_number(); i < sets.rows; i += warp_count()) {
    for (int64_t e = sets.offsets[i]; e < sets.offsets[i + 1]; ++e) {
      const int64_t j = sets.columns[e];
      int64_t row = i;
      int64_t place = place_in(lists.index + i * width, width, static_cast<int32_t>(j));
      if (place < 0) {
        row = j;
        place = place_in(lists.index + j * width, width, static_cast<int32_t>(i));
      }
      if (lane() == 0) {
        result[e] = place < 0 ? -1.0 : static_cast<double>(distances[row * width + place]);
      }
    }
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    encode_kernel(const Csr rows, const double* maxima, double* weights) {
  const double* distances = rows.values;
  for (int64_t i = warp_number(); i < rows.rows; i += warp_count()) {
    const int64_t first = rows.offsets[i];
    const int64_t last = rows.offsets[i + 1];
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
    average_rows_kernel(const Csr rows, const NeighbourLists lists, const RowsOut out,
                        uint64_t* scratch) {
  const bool fill = out.columns != nullptr;
  const Table table = Table::at(scratch, warp_number(), rows.rows, true);
  for (int64_t i = warp_number(); i < rows.rows; i += warp_count()) {
    for (int64_t t = 0; t < lists.length; ++t) {
      const int64_t j = lists.index[i * lists.width + t];
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
      out.values[begin + place] = table.sums[column] / static_cast<double>(lists.length);
      table.sums[column] = 0;
    });
  }
}

__global__ void __launch_bounds__(256)
    count_columns_kernel(const Csr rows, int64_t first, int64_t* lengths) {
  const int64_t end = rows.offsets[rows.rows];
  for (int64_t e = rows.offsets[first] + thread_number(); e < end; e += thread_count()) {
    atomicAdd(reinterpret_cast<unsigned long long*>(lengths) + rows.columns[e], 1ull);
  }
}

// Puts every entry somewhere among those of its column.
__global__ void __launch_bounds__(kWarpThreads)
    scatter_rows_kernel(const Csr rows, int64_t first, const int64_t* inverted_offsets,
                        int64_t* next, const Entries loose) {
  for (int64_t i = first + warp_number(); i < rows.rows; i += warp_count()) {
    for (int64_t e = rows.offsets[i] + lane(); e < rows.offsets[i + 1]; e += kWarp) {
      const int64_t column = rows.columns[e];
      const int64_t slot = inverted_offsets[column] +
                           static_cast<int64_t>(atomicAdd(
                               reinterpret_cast<unsigned long long*>(next) + column, 1ull));
      loose.rows[slot] = static_cast<int32_t>(i);
      loose.values[slot] = rows.values[e];
    }
  }
}

// Puts the entries of every column in the order of rows.
__global__ void __launch_bounds__(kWarpThreads)
    order_columns_kernel(const int64_t* inverted_offsets, int64_t n, const Entries loose,
                         const Entries out, uint64_t* scratch) {
  const Table table = Table::at(scratch, warp_number(), n, true);
  for (int64_t column = warp_number(); column < n; column += warp_count()) {
    const int64_t begin = inverted_offsets[column];
    for (int64_t e = begin + lane(); e < inverted_offsets[column + 1]; e += kWarp) {
      table.add(loose.rows[e], loose.values[e]);
    }
    table.drain(KeepAll(), [&](int64_t place, int64_t row) {
      out.rows[begin + place] = static_cast<int32_t>(row);
      out.values[begin + place] = table.sums[row];
      table.sums[row] = 0;
    });
  }
}

}  // namespace

int64_t table_bytes(int64_t columns, bool with_sums) {
  return Table::units_of(columns, with_sums) * 8;
}

cudaError_t launch_offsets(int64_t* lengths, int64_t n, cudaStream_t stream) {
  return launch(offsets_kernel, 1, kScanThreads, stream, lengths, n);
}

cudaError_t launch_reciprocal_sets(const NeighbourLists& lists, const RowsOut& out,
                                   const Scratch& scratch, cudaStream_t stream) {
  return launch(reciprocal_sets_kernel, blocks_of(scratch, lists.items), kWarpThreads, stream,
                lists, out, scratch.tables);
}

cudaError_t launch_expand_sets(const Csr& sets, const Csr& half, const RowsOut& out,
                               const Scratch& scratch, cudaStream_t stream) {
  return launch(expand_sets_kernel, blocks_of(scratch, sets.rows), kWarpThreads, stream, sets, half,
                out, scratch.tables);
}

template <typename T>
cudaError_t launch_listed_distances(const Csr& sets, const NeighbourLists& lists,
                                    const T* distances, double* result, cudaStream_t stream) {
  return launch(listed_distances_kernel<T>, blocks_for(sets.rows, kWarpsPerBlock), kWarpThreads,
                stream, sets, lists, distances, result);
}

cudaError_t launch_encode(const Csr& rows, const double* maxima, double* weights,
                          cudaStream_t stream) {
  return launch(encode_kernel, blocks_for(rows.rows, kWarpsPerBlock), kWarpThreads, stream, rows,
                maxima, weights);
}

cudaError_t launch_average_rows(const Csr& rows, const NeighbourLists& lists, const RowsOut& out,
                                const Scratch& scratch, cudaStream_t stream) {
  return launch(average_rows_kernel, blocks_of(scratch, rows.rows), kWarpThreads, stream, rows,
                lists, out, scratch.tables);
}

cudaError_t launch_count_columns(const Csr& rows, int64_t first, int64_t* lengths,
                                 cudaStream_t stream) {
  return launch(count_columns_kernel, blocks_for(rows.rows - first, 8), 256, stream, rows, first,
                lengths);
}

cudaError_t launch_transpose_rows(const Csr& rows, int64_t first, const int64_t* inverted_offsets,
                                  int64_t* next, const Entries& loose, const Entries& out,
                                  const Scratch& scratch, cudaStream_t stream) {
  const cudaError_t error =
      launch(scatter_rows_kernel, blocks_for(rows.rows - first, kWarpsPerBlock), kWarpThreads,
             stream, rows, first, inverted_offsets, next, loose);
  if (error != cudaSuccess) return error;
  return launch(order_columns_kernel, blocks_of(scratch, rows.rows), kWarpThreads, stream,
                inverted_offsets, rows.rows, loose, out, scratch.tables);
}

template cudaError_t launch_listed_distances(const Csr&, const NeighbourLists&, const float*,
                                             double*, cudaStream_t);
template cudaError_t launch_listed_distances(const Csr&, const NeighbourLists&, const double*,
                                             double*, cudaStream_t);

}  // namespace mmga
