// Certified ranks: pairs whose order a tile of approximate keys and a bound on their error decide,
// and float64 sums for the others.
//
// Counting: a block takes a row and walks its keys once for every 512 of its matches, as
// count_preceding does; thresholds are searched in device memory, where a row's stay in the cache.
// Undecided pairs are counted on the way and listed by a second walk over the rows that have any.
// Bound by one to two reads of the tile.
//
// Sums: eight lanes take a pair. Bound by reads of scattered rows.
#include "cuda/certified.cuh"
#include "cuda/keys.cuh"
#include "cuda/launch.cuh"
#include "cuda/products.cuh"

namespace mmga {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 512;  // matches of a row that are counted in one walk

// The matches of a row that an item may or may not precede: it precedes those from `last` on, and
// none that are below `first`.
struct Matches {
  int64_t first, last;
};

__device__ Matches matches_about(const TileView<float>& tile, const Intervals& in, int64_t row,
                                 int64_t column, int64_t start, int64_t count) {
  const float* upper = in.upper + start;
  const float key = key_at(tile, row, column);
  const float width = in.row_radius[row] * in.column_radius[column] + in.column_slack[column];
  const Matches none = {count, count};
  if (key - width > upper[count - 1] || !is_counted(tile, row, column)) return none;
  return {first_not_below(upper, 0, count, key - width),
          first_above(in.lower + start, 0, count, key + width)};
}

// Grid: a block for each row, which alone writes the row's counts.
__global__ void __launch_bounds__(kThreads)
    count_certain_kernel(const TileView<float> tile, const Intervals in, int64_t* undecided) {
  MMGA_SHARED(unsigned, bins, kChunk);
  MMGA_SHARED(unsigned, open, 1);
  const int64_t row = blockIdx.x;
  const int64_t start = in.match_start[row];
  const int64_t count = in.match_start[row + 1] - start;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) open[0] = 0;
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int size = static_cast<int>(count - chunk < kChunk ? count - chunk : kChunk);
    __syncthreads();
    for (int k = thread; k < size; k += kThreads) bins[k] = 0;
    __syncthreads();
    for (int64_t column = thread; column < tile.width; column += kThreads) {
      const Matches about = matches_about(tile, in, row, column, start, count);
      const int64_t bin = about.last < chunk ? 0 : about.last - chunk;
      if (bin < size) atomicAdd(&bins[bin], 1u);
      if (chunk == 0 && about.first < about.last) atomicAdd(&open[0], 1u);
    }
    __syncthreads();
    if (thread < kWarp) add_running_sums(bins, size, in.preceding + start + chunk);
  }
  __syncthreads();
  if (thread == 0) undecided[row] = open[0];
}

__global__ void __launch_bounds__(kWarpThreads)
    list_undecided_kernel(const TileView<float> tile, const Intervals in, const int64_t* offsets,
                          Undecided* pairs) {
  for (int64_t row = warp_number(); row < tile.rows; row += warp_count()) {
    int64_t place = offsets[row];
    if (place == offsets[row + 1]) continue;
    const int64_t start = in.match_start[row];
    const int64_t count = in.match_start[row + 1] - start;
    for (int64_t left = 0; left < tile.width; left += kWarp) {
      const int64_t column = left + lane();
      Matches about = {0, 0};
      if (column < tile.width) about = matches_about(tile, in, row, column, start, count);
      const bool open = about.first < about.last;
      const unsigned hits = __ballot_sync(kAllLanes, open);
      if (open) {
        pairs[place + __popc(hits & ((1u << lane()) - 1))] = {
            static_cast<int32_t>(row), static_cast<int32_t>(column),
            static_cast<int32_t>(about.first), static_cast<int32_t>(about.last)};
      }
      place += __popc(hits);
    }
  }
}

__device__ void add_one(int64_t* counter) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull);
}

// What PairKeys turns into the key of two rows; every lane of the warp comes here.
__device__ double sum_of_rows(const float* x, const float* y, int64_t width, int64_t metric) {
  return metric == kEuclidean ? interleaved_sum<SquaredDifference>(x, y, width)
                              : interleaved_sum<Product>(x, y, width);
}
__device__ double sum_of_rows(const int16_t* x, const int16_t* y, int64_t width, int64_t) {
  return integer_sum(x, y, width);
}

// The sum over the eight lanes of a pair.
__device__ int sum_of_pair(int value) {
  for (int with = 1; with < kAccumulators; with *= 2) {
    value += __shfl_xor_sync(kAllLanes, value, with);
  }
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    refine_pairs_kernel(const Settlement s, const PairRows<T> rows, Undecided* open,
                        int64_t* left) {
  const int own = lane() % kAccumulators;
  for (int64_t first = warp_number() * kRowsPerWarp; first < rows.count;
       first += warp_count() * kRowsPerWarp) {
    const int64_t p = first + lane() / kAccumulators;
    const bool there = p < rows.count;
    const Undecided pair = there ? rows.pairs[p] : Undecided{0, 0, 0, 0};
    const double sum =
        sum_of_rows(rows.x + pair.row * rows.width, rows.y + pair.column * rows.width,
                    there ? rows.width : 0, s.key.metric);
    const double key = s.key(pair.row, pair.column, sum);
    const int64_t start = s.match_start[pair.row];
    if (s.row_radius == nullptr) {
      for (int64_t k = start + pair.first + own; k < start + pair.last; k += kAccumulators) {
        const bool equal = s.match_key[k] == key;
        if (equal) add_one(s.tied + pair.row);
        if (key < s.match_key[k] || (equal && pair.column + s.offset < s.match_item[k])) {
          add_one(s.preceding + k);
        }
      }
      continue;
    }
    const double half = s.row_radius[pair.row] * s.column_radius[pair.column] +
                        (s.row_slack[pair.row] + s.column_slack[pair.column]);
    int before = 0, after = 0;
    for (int64_t k = start + pair.first + own; k < start + pair.last; k += kAccumulators) {
      after += key - half > s.match_key[k];
      if (key + half < s.match_key[k]) {
        ++before;
        add_one(s.preceding + k);
      }
    }
    before = sum_of_pair(before);
    after = sum_of_pair(after);
    if (there && own == 0) {
      open[p] = {pair.row, pair.column, pair.first + after, pair.last - before};
      left[p] = pair.first + after < pair.last - before;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    keep_pairs_kernel(const Undecided* pairs, int64_t count, const int64_t* offsets,
                      Undecided* kept) {
  for (int64_t p = thread_number(); p < count; p += thread_count()) {
    if (offsets[p] < offsets[p + 1]) kept[offsets[p]] = pairs[p];
  }
}

}  // namespace

cudaError_t launch_count_certain(const TileView<float>& tile, const Intervals& intervals,
                                 int64_t* undecided, cudaStream_t stream) {
  return launch(count_certain_kernel, tile.rows, kThreads, stream, tile, intervals, undecided);
}

cudaError_t launch_list_undecided(const TileView<float>& tile, const Intervals& intervals,
                                  const int64_t* offsets, Undecided* pairs, cudaStream_t stream) {
  return launch(list_undecided_kernel, blocks_for(tile.rows, kWarpsPerBlock), kWarpThreads, stream,
                tile, intervals, offsets, pairs);
}

template <typename T>
cudaError_t launch_refine_pairs(const Settlement& settlement, const PairRows<T>& rows,
                                Undecided* open, int64_t* left, cudaStream_t stream) {
  return launch(refine_pairs_kernel<T>, blocks_for(rows.count, kWarpsPerBlock * kRowsPerWarp),
                kWarpThreads, stream, settlement, rows, open, left);
}

cudaError_t launch_keep_pairs(const Undecided* pairs, int64_t count, const int64_t* offsets,
                              Undecided* kept, cudaStream_t stream) {
  return launch(keep_pairs_kernel, blocks_for(count, kThreads), kThreads, stream, pairs, count,
                offsets, kept);
}

template cudaError_t launch_refine_pairs(const Settlement&, const PairRows<float>&, Undecided*,
                                         int64_t*, cudaStream_t);
template cudaError_t launch_refine_pairs(const Settlement&, const PairRows<int16_t>&, Undecided*,
                                         int64_t*, cudaStream_t);

}  // namespace mmga
