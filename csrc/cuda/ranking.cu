// How many items of a tile rank before each match of its rows, and the matches' own keys.
//
// Counting: a block takes a row and walks its keys once for every 512 of its matches. The matches
// are in shared memory, ascending by (key, item); each key is searched among them and counted in
// the bin of the first match that it precedes, and running sums of the bins are the counts.
// Integers are added, so the order of threads does not matter. Memory-bound: the tile is read once
// for rows of at most 512 matches.
//
// Reading and sorting: a warp takes a row; every match counts those before it, whose number is its
// place.
#include "cuda/keys.cuh"
#include "cuda/launch.cuh"
#include "cuda/ranking.cuh"

namespace mmga {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 512;  // matches of a row that are counted in one walk

// The first of `count` matches that (key, item) precedes.
template <typename T, typename Keys, typename Items>
__device__ int first_after(const Keys& match_key, const Items& match_item, int count, T key,
                           int64_t item) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    const T other = match_key[middle];
    if (key < other || (key == other && item < match_item[middle])) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Grid: a block for each row, which alone writes the row's counts.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_preceding_kernel(const TileView<T> tile, const RankCounts<T> out) {
  MMGA_SHARED(T, match_key, kChunk);
  MMGA_SHARED(int64_t, match_item, kChunk);
  MMGA_SHARED(unsigned, bins, kChunk + 1);
  MMGA_SHARED(unsigned long long, pairs, 2);  // tied, mismatched
  MMGA_SHARED(int, bad, 1);
  MMGA_SHARED(T, smallest, kThreads / kWarp);

  const int64_t row = blockIdx.x;
  const int64_t first = out.match_start[row];
  const int64_t last = out.match_start[row + 1];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    pairs[0] = 0;
    pairs[1] = 0;
    bad[0] = 0;
  }
  T nearest = static_cast<T>(INFINITY);
  // A row without matches is walked once as well, for its nearest item.
  for (int64_t chunk = first; chunk < last || chunk == first; chunk += kChunk) {
    const int count = static_cast<int>(last - chunk < kChunk ? last - chunk : kChunk);
    __syncthreads();
    for (int k = thread; k <= count; k += kThreads) {
      bins[k] = 0;
      if (k < count) {
        match_key[k] = out.match_key[chunk + k];
        match_item[k] = out.match_item[chunk + k];
      }
    }
    __syncthreads();
    unsigned long long equal = 0;
    for (int64_t column = thread; column < tile.width; column += kThreads) {
      const T key = key_at(tile, row, column);
      if (key != key) {
        atomicOr(&bad[0], 1);
        continue;
      }
      if (!is_counted(tile, row, column)) continue;
      nearest = key < nearest ? key : nearest;
      const int bin = first_after(match_key, match_item, count, key, tile.offset + column);
      atomicAdd(&bins[bin], 1u);
      // Matches of equal key are on both sides of the bin.
      for (int k = bin; k < count && match_key[k] == key; ++k) ++equal;
      for (int k = bin - 1; k >= 0 && match_key[k] == key; --k) ++equal;
    }
    if (equal != 0) atomicAdd(&pairs[0], equal);
    for (int k = thread; k < count; k += kThreads) {
      const int64_t column = match_item[k] - tile.offset;
      const T key = match_key[k];
      if (column >= 0 && column < tile.width && key_at(tile, row, column) != key) {
        atomicAdd(&pairs[1], 1ull);
      }
    }
    __syncthreads();
    if (thread < kWarp) add_running_sums(bins, count, out.preceding + chunk);
  }
  nearest = warp_min(nearest);
  if (lane() == 0) smallest[thread / kWarp] = nearest;
  __syncthreads();
  if (thread == 0) {
    for (int w = 0; w < kThreads / kWarp; ++w) {
      const T other = smallest[w];
      nearest = other < nearest ? other : nearest;
    }
    out.tied[row] += static_cast<int64_t>(pairs[0]);
    out.mismatched[row] += static_cast<int64_t>(pairs[1]);
    if (bad[0] != 0) {
      out.nearest[row] = static_cast<T>(NAN);
    } else if (nearest < out.nearest[row]) {
      out.nearest[row] = nearest;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    sort_matches_kernel(const TileView<T> tile, const MatchLists<T> lists, int64_t* sorted_item,
                        T* sorted_key) {
  for (int64_t row = warp_number(); row < tile.rows; row += warp_count()) {
    const int64_t first = lists.start[row];
    const int64_t count = lists.start[row + 1] - first;
    int64_t* items = lists.item + first;
    T* keys = lists.key + first;
    if (tile.values != nullptr) {
      for (int64_t m = lane(); m < count; m += kWarp) {
        const int64_t column = items[m];
        // An item outside the tile has no key; it is never read.
        const bool inside = column >= 0 && column < tile.width;
        keys[m] = inside ? key_at(tile, row, column) : static_cast<T>(NAN);
      }
      __syncwarp();
    }
    for (int64_t m = lane(); m < count; m += kWarp) {
      const T key = keys[m];
      const int64_t item = items[m];
      int64_t place = first;
      for (int64_t other = 0; other < count; ++other) {
        place += ranks_before(keys[other], items[other], key, item);
      }
      sorted_key[place] = key;
      sorted_item[place] = item;
    }
    __syncwarp();
    for (int64_t m = lane(); m < count; m += kWarp) {
      keys[m] = sorted_key[first + m];
      items[m] = sorted_item[first + m];
    }
  }
}

}  // namespace

template <typename T>
cudaError_t launch_count_preceding(const TileView<T>& tile, const RankCounts<T>& counts,
                                   cudaStream_t stream) {
  return launch(count_preceding_kernel<T>, tile.rows, kThreads, stream, tile, counts);
}

template <typename T>
cudaError_t launch_sort_matches(const TileView<T>& tile, const MatchLists<T>& lists,
                                int64_t* sorted_item, T* sorted_key, cudaStream_t stream) {
  return launch(sort_matches_kernel<T>, blocks_for(tile.rows, kWarpsPerBlock), kWarpThreads, stream,
                tile, lists, sorted_item, sorted_key);
}

template cudaError_t launch_count_preceding(const TileView<float>&, const RankCounts<float>&,
                                            cudaStream_t);
template cudaError_t launch_count_preceding(const TileView<double>&, const RankCounts<double>&,
                                            cudaStream_t);
template cudaError_t launch_sort_matches(const TileView<float>&, const MatchLists<float>&, int64_t*,
                                         float*, cudaStream_t);
template cudaError_t launch_sort_matches(const TileView<double>&, const MatchLists<double>&,
                                         int64_t*, double*, cudaStream_t);

}  // namespace mmga
