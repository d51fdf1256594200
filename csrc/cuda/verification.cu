// A histogram of the keys of a tile that are no match, and the nearest of each row.
//
// A block takes a row. A first guess of each key's bin, as if all were equally wide, is mended by a
// step or a search; counts are added in device memory, where integers add up in any order. Bound by
// one read of the tile and the atomics on the bins that most keys fall in.
#include "cuda/keys.cuh"
#include "cuda/launch.cuh"
#include "cuda/verification.cuh"

namespace mmga {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kNobody = INT64_MAX;

// The first bin whose edge is not below the key; `bins` past the last edge, and for NaN.
__device__ int64_t bin_of(const double* edges, int64_t bins, double key, int64_t place) {
  if (key != key) return bins;
  if (place > 0 && !(edges[place - 1] < key)) --place;
  if (edges[place] < key && place < bins - 1) ++place;
  if (!(edges[place] < key) && (place == 0 || edges[place - 1] < key)) return place;
  int64_t low = 0;
  int64_t high = bins;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (edges[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ bool is_nearer(double key, int64_t item, double than, int64_t than_item) {
  return key < than || (key == than && item < than_item);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) count_impostors_kernel(const Impostors<T> tile) {
  MMGA_SHARED(double, keys, kThreads / kWarp);
  MMGA_SHARED(int64_t, items, kThreads / kWarp);
  const int64_t row = blockIdx.x;
  const bool roots = tile.metric == kEuclidean;
  // The last edge may lie beyond all keys: the one before it tells how wide bins are.
  const int64_t at = tile.bins > 2 ? tile.bins - 2 : 0;
  const double unit = roots ? sqrt(tile.edges[at]) : tile.edges[at];
  const double scale = unit > 0 ? static_cast<double>(at + 1) / unit : 0.0;
  const double last = static_cast<double>(tile.bins - 1);
  double nearest = static_cast<double>(INFINITY);
  int64_t nearest_item = kNobody;
  for (int64_t column = threadIdx.x; column < tile.width; column += kThreads) {
    const int64_t item = tile.offset + column;
    if (tile.removed != nullptr && tile.removed[row * tile.removed_stride + column]) continue;
    const bool same_camera =
        tile.row_camera != nullptr && tile.row_camera[row] == tile.column_camera[column];
    if (same_camera && !tile.cross_camera) continue;
    if (holds(tile.ignored_item, tile.ignored_start[row], tile.ignored_start[row + 1], item)) {
      continue;
    }
    const double key = ranking_key(tile.values[row * tile.row_stride + column], tile.row_term,
                                   tile.column_term, tile.metric, row, column);
    if ((tile.known == nullptr || tile.known[column]) &&
        is_nearer(key, item, nearest, nearest_item)) {
      nearest = key;
      nearest_item = item;
    }
    if (same_camera) continue;
    const double guess = (roots ? sqrt(key) : key) * scale;
    const double bounded = guess < last ? guess : last;  // NaN, too
    const int64_t place = bounded > 0 ? static_cast<int64_t>(bounded) : 0;
    atomicAdd(reinterpret_cast<unsigned long long*>(tile.counts) +
                  bin_of(tile.edges, tile.bins, key, place),
              1ull);
  }
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const double key = __shfl_xor_sync(kAllLanes, nearest, with);
    const int64_t item = __shfl_xor_sync(kAllLanes, nearest_item, with);
    if (is_nearer(key, item, nearest, nearest_item)) {
      nearest = key;
      nearest_item = item;
    }
  }
  if (lane() == 0) {
    keys[threadIdx.x / kWarp] = nearest;
    items[threadIdx.x / kWarp] = nearest_item;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  nearest = tile.nearest[row];
  nearest_item = tile.nearest_item[row];
  for (int w = 0; w < kThreads / kWarp; ++w) {
    const double key = keys[w];
    const int64_t item = items[w];
    if (item != kNobody && is_nearer(key, item, nearest, nearest_item)) {
      nearest = key;
      nearest_item = item;
    }
  }
  tile.nearest[row] = nearest;
  tile.nearest_item[row] = nearest_item;
}

}  // namespace

template <typename T>
cudaError_t launch_count_impostors(const Impostors<T>& tile, cudaStream_t stream) {
  return launch(count_impostors_kernel<T>, tile.rows, kThreads, stream, tile);
}

template cudaError_t launch_count_impostors(const Impostors<float>&, cudaStream_t);
template cudaError_t launch_count_impostors(const Impostors<double>&, cudaStream_t);

}  // namespace mmga
