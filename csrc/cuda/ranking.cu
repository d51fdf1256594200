// count_preceding on CUDA: how many items of a tile rank before each match of its rows.
//
// A block takes a row and walks its keys once for every 512 of its matches. The matches stand in
// shared memory, ascending by (key, item); each key is searched among them and counted in the bin
// of the first match that it precedes, and running sums of the bins are the counts. Integers are
// added, so the order of threads does not matter. Memory-bound: the tile is read once for rows of
// at most 512 matches.

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "cuda/stream.cuh"
#include "ranking.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kChunk = 512;  // matches of a row that are counted in one walk

// Compiled without fused multiply-add, so that keys round as on the CPU.
template <typename T>
__device__ T key_at(const Tile<T>& tile, int64_t row, int64_t column) {
  const T value = tile.values[row * tile.row_stride + column];
  if (tile.metric == kCosine) return 1 - (value * tile.row_term[row]) * tile.column_term[column];
  if (tile.metric == kEuclidean) {
    const T key = (tile.row_term[row] + tile.column_term[column]) - 2 * value;
    return key < 0 ? T(0) : key;  // NaN stays NaN
  }
  return value;
}

template <typename T>
__device__ bool is_counted(const Tile<T>& tile, int64_t row, int64_t column) {
  if (tile.row_camera != nullptr && tile.row_camera[row] == tile.column_camera[column]) {
    return false;
  }
  if (tile.removed != nullptr && tile.removed[row * tile.removed_stride + column]) return false;
  int64_t low = tile.ignored_start[row];
  int64_t high = tile.ignored_start[row + 1];
  const int64_t end = high;
  const int64_t item = tile.offset + column;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (tile.ignored_item[middle] < item) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low == end || tile.ignored_item[low] != item;
}

// The first of `count` matches that (key, item) precedes.
template <typename T>
__device__ int first_after(const T* match_key, const int64_t* match_item, int count, T key,
                           int64_t item) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    const bool precedes =
        key < match_key[middle] || (key == match_key[middle] && item < match_item[middle]);
    if (precedes) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Grid: a block for each row, which alone writes the row's counts.
template <typename T>
__global__ void __launch_bounds__(kThreads) count_preceding_kernel(const Tile<T> tile) {
  __shared__ T match_key[kChunk];
  __shared__ int64_t match_item[kChunk];
  __shared__ unsigned int bins[kChunk + 1];
  __shared__ unsigned long long tied;
  __shared__ unsigned long long moved;
  __shared__ int bad;
  __shared__ T smallest[kThreads];

  const int64_t row = blockIdx.x;
  const int64_t first = tile.match_start[row];
  const int64_t last = tile.match_start[row + 1];
  const T infinity = static_cast<T>(INFINITY);
  if (threadIdx.x == 0) {
    tied = 0;
    moved = 0;
    bad = 0;
  }
  T nearest = infinity;
  // A row without matches is walked once as well: its nearest item is wanted.
  for (int64_t chunk = first; chunk < last || chunk == first; chunk += kChunk) {
    const int count = static_cast<int>(last - chunk < kChunk ? last - chunk : kChunk);
    __syncthreads();
    for (int k = threadIdx.x; k <= count; k += kThreads) {
      bins[k] = 0;
      if (k < count) {
        match_key[k] = tile.match_key[chunk + k];
        match_item[k] = tile.match_item[chunk + k];
      }
    }
    __syncthreads();
    unsigned long long equal = 0;
    for (int64_t column = threadIdx.x; column < tile.width; column += kThreads) {
      const T key = key_at(tile, row, column);
      if (key != key) {
        bad = 1;
        continue;
      }
      if (!is_counted(tile, row, column)) continue;
      nearest = key < nearest ? key : nearest;
      const int64_t item = tile.offset + column;
      const int bin = first_after(match_key, match_item, count, key, item);
      atomicAdd(&bins[bin], 1u);
      // Matches of equal key stand on both sides of the bin.
      for (int k = bin; k < count && match_key[k] == key; ++k) ++equal;
      for (int k = bin - 1; k >= 0 && match_key[k] == key; --k) ++equal;
    }
    if (equal != 0) atomicAdd(&tied, equal);
    __syncthreads();
    if (threadIdx.x == 0) {
      int64_t before = 0;
      for (int k = 0; k < count; ++k) {
        before += bins[k];
        tile.preceding[chunk + k] += before;
      }
    }
    for (int k = threadIdx.x; k < count; k += kThreads) {
      const int64_t column = match_item[k] - tile.offset;
      if (column >= 0 && column < tile.width && key_at(tile, row, column) != match_key[k]) {
        atomicAdd(&moved, 1ull);
      }
    }
  }
  smallest[threadIdx.x] = nearest;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      const T other = smallest[threadIdx.x + step];
      if (other < smallest[threadIdx.x]) smallest[threadIdx.x] = other;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    tile.tied[row] += static_cast<int64_t>(tied);
    tile.moved[row] += static_cast<int64_t>(moved);
    if (bad) {
      tile.nearest[row] = static_cast<T>(NAN);
    } else if (smallest[0] < tile.nearest[row]) {
      tile.nearest[row] = smallest[0];
    }
  }
}

template <typename T>
void launch_count_preceding(const Tile<T>& tile, cudaStream_t stream) {
  count_preceding_kernel<T><<<static_cast<unsigned>(tile.rows), kThreads, 0, stream>>>(tile);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void check_list(const Tensor& tensor, ScalarType type, int64_t length, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.is_contiguous() && tensor.scalar_type() == type &&
                      (length < 0 || tensor.numel() == length),
                  name, " has the wrong device, layout, dtype or length");
}

void count_preceding(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& match_start,
                     const Tensor& match_item, const Tensor& match_key, const Tensor& ignored_start,
                     const Tensor& ignored_item, std::optional<Tensor> row_camera,
                     std::optional<Tensor> column_camera, std::optional<Tensor> removed,
                     Tensor preceding, Tensor tied, Tensor nearest, Tensor moved) {
  const ScalarType type = values.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "values must be float32 or float64");
  STD_TORCH_CHECK(values.dim() == 2 && (values.stride(1) == 1 || values.size(1) == 1),
                  "values must be [R, W] with contiguous rows");
  STD_TORCH_CHECK(metric >= kGiven && metric <= kEuclidean, "metric must be 0, 1 or 2");
  const int64_t rows = values.size(0);
  const int64_t width = values.size(1);
  if (metric != kGiven) {
    check_list(row_term, type, rows, "row_term");
    check_list(column_term, type, width, "column_term");
  }
  check_list(match_start, ScalarType::Long, rows + 1, "match_start");
  check_list(match_item, ScalarType::Long, -1, "match_item");
  check_list(match_key, type, match_item.numel(), "match_key");
  check_list(ignored_start, ScalarType::Long, rows + 1, "ignored_start");
  check_list(ignored_item, ScalarType::Long, -1, "ignored_item");
  check_list(preceding, ScalarType::Long, match_item.numel(), "preceding");
  check_list(tied, ScalarType::Long, rows, "tied");
  check_list(nearest, type, rows, "nearest");
  check_list(moved, ScalarType::Long, rows, "moved");
  STD_TORCH_CHECK(row_camera.has_value() == column_camera.has_value(),
                  "row_camera and column_camera come together");
  if (row_camera.has_value()) {
    check_list(*row_camera, ScalarType::Int, rows, "row_camera");
    check_list(*column_camera, ScalarType::Int, width, "column_camera");
  }
  if (removed.has_value()) {
    STD_TORCH_CHECK(removed->is_cuda() && removed->scalar_type() == ScalarType::Bool &&
                        removed->dim() == 2 && removed->size(0) == rows &&
                        removed->size(1) == width && (removed->stride(1) == 1 || width == 1),
                    "removed must be bool [R, W] with contiguous rows");
  }
  if (rows == 0 || width == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  const cudaStream_t stream = current_stream(values.get_device_index());
  const auto run = [&](auto key) {
    launch_count_preceding(
        tile_of<decltype(key)>(values, row_term, column_term, metric, offset, match_start,
                               match_item, match_key, ignored_start, ignored_item, row_camera,
                               column_camera, removed, preceding, tied, nearest, moved),
        stream);
  };
  type == ScalarType::Float ? run(0.0F) : run(0.0);
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CUDA, m) {
  m.impl("count_preceding", TORCH_BOX(&mmga::count_preceding));
}
