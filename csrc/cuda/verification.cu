// A histogram of the keys of a tile that are no match, and the nearest of each row.
//
// A block takes a row. A first guess of each key's bin, as if all were equally wide, is corrected
// by a step or a search; counts are added in device memory, where integers add up in any order.
// Bound by one read of the tile and the atomics on the bins that most keys fall in.
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
  return first_not_below(edges, 0, bins, key);
}

__device__ bool is_nearer(double key, int64_t item, double than, int64_t than_item) {
  return key < than || (key == than && item < than_item);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_impostors_kernel(const TileView<T> tile, const Histogram out) {
  MMGA_SHARED(double, keys, kThreads / kWarp);
  MMGA_SHARED(int64_t, items, kThreads / kWarp);
  const int64_t row = blockIdx.x;
  const bool roots = tile.metric == kEuclidean;
  // The last edge may be beyond all keys: the one before it tells how wide bins are.
  const int64_t at = out.bins > 2 ? out.bins - 2 : 0;
  const double unit = roots ? sqrt(out.edges[at]) : out.edges[at];
  const double scale = unit > 0 ? static_cast<double>(at + 1) / unit : 0.0;
  const double last = static_cast<double>(out.bins - 1);
  double nearest = static_cast<double>(INFINITY);
  int64_t nearest_item = kNobody;
  for (int64_t column = threadIdx.x; column < tile.width; column += kThreads) {
    const int64_t item = tile.offset + column;
    if (is_removed(tile, row, column)) continue;
    const bool same_camera = has_same_camera(tile, row, column);
    if (same_camera && !out.cross_camera) continue;
    if (is_ignored(tile, row, column)) continue;
    const double key = key_at(tile, row, column);
    if ((out.known == nullptr || out.known[column]) &&
        is_nearer(key, item, nearest, nearest_item)) {
      nearest = key;
      nearest_item = item;
    }
    if (same_camera) continue;
    const double guess = (roots ? sqrt(key) : key) * scale;
    const double bounded = guess < last ? guess : last;  // NaN, too
    const int64_t place = bounded > 0 ? static_cast<int64_t>(bounded) : 0;
    atomicAdd(
        reinterpret_cast<unsigned long long*>(out.counts) + bin_of(out.edges, out.bins, key, place),
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
  nearest = out.nearest[row];
  nearest_item = out.nearest_item[row];
  for (int w = 0; w < kThreads / kWarp; ++w) {
    const double key = keys[w];
    const int64_t item = items[w];
    if (item != kNobody && is_nearer(key, item, nearest, nearest_item)) {
      nearest = key;
      nearest_item = item;
    }
  }
  out.nearest[row] = nearest;
  out.nearest_item[row] = nearest_item;
}

}  // namespace

template <typename T>
cudaError_t launch_count_impostors(const TileView<T>& tile, const Histogram& histogram,
                                   cudaStream_t stream) {
  return launch(count_impostors_kernel<T>, tile.rows, kThreads, stream, tile, histogram);
}

template cudaError_t launch_count_impostors(const TileView<float>&, const Histogram&, cudaStream_t);
template cudaError_t launch_count_impostors(const TileView<double>&, const Histogram&,
                                            cudaStream_t);

}  // namespace mmga
