// Exact k nearest neighbours from tiles of inner products.
//
// A warp takes an item and walks its row (or column) of the tile: distances are made in registers
// and compared with a bound on the item's k-th smallest, and the few that pass are inserted into
// its list in device memory. A list that is full is shrunk by bisection. Bound by one read of the
// tile for rows and one for columns; the latter, with a stride, is served by the caches.
#include "cuda/knn.cuh"
#include "cuda/launch.cuh"
#include "cuda/selection.cuh"

namespace mmga {
namespace {

constexpr int64_t kAnyIndex = 0xffffffff;

__global__ void __launch_bounds__(kWarpThreads) update_kernel(const TileUpdate u, bool transposed) {
  auto* candidates = reinterpret_cast<uint64_t*>(u.candidates);
  for (int64_t r = warp_number(); r < u.items; r += warp_count()) {
    const int64_t item = u.first_item + r;
    const float own = u.item_term[r];
    int64_t begin = 0;
    int64_t end = u.others;
    if (u.symmetric) {
      const int64_t self = item - u.first_other;
      if (transposed) {
        end = self < end ? self : end;
      } else {
        begin = self + 1 > 0 ? self + 1 : 0;
      }
    }
    SmallestKeys<uint64_t> nearest{candidates + item * u.slots, u.slots, u.k, u.counts[item],
                                   static_cast<uint64_t>(pack(u.thresholds[item], kAnyIndex))};
    float farthest = 0;
    for (int64_t first = begin; first < end; first += kWarp) {
      const int64_t o = first + lane();
      const bool there = o < end;
      float d = 0;
      if (there) {
        const float product = u.products[r * u.item_step + o * u.other_step];
        const float term = u.other_term[o];
        d = transposed ? squared_distance(product, term, own, u.cosine)
                       : squared_distance(product, own, term, u.cosine);
        farthest = d > farthest ? d : farthest;
        const int64_t other = u.first_other + o;
        if (u.kept != nullptr && item < u.kept_items && other >= u.kept_items) {
          u.kept[item * u.kept_step + other - u.kept_items] = d;
        }
      }
      nearest.insert(there, pack(d, u.first_other + o));
    }
    farthest = warp_max(farthest);
    if (lane() == 0) {
      u.counts[item] = static_cast<int32_t>(nearest.count);
      u.thresholds[item] = distance_of(nearest.bound);
      if (farthest > u.maxima[item]) u.maxima[item] = farthest;
    }
  }
}

__global__ void __launch_bounds__(kWarpThreads)
    ordered_candidates_kernel(const CandidateLists lists, int64_t k, int32_t* index,
                              float* distances) {
  const int64_t slots = lists.slots;
  for (int64_t item = warp_number(); item < lists.items; item += warp_count()) {
    const int64_t held = lists.counts[item] < slots ? lists.counts[item] : slots;
    // Read only: nothing is inserted into the list, which is not shrunk.
    auto* list = reinterpret_cast<uint64_t*>(const_cast<int64_t*>(lists.candidates));
    const SmallestKeys<uint64_t> nearest{list + item * slots, slots, k, held, 0};
    nearest.each_in_order([&](int64_t place, uint64_t candidate) {
      index[item * k + place] = static_cast<int32_t>(candidate & 0x7fffffff);
      distances[item * k + place] = distance_of(candidate);
    });
    for (int64_t place = held + lane(); place < k; place += kWarp) {  // as in mmga/ops/reference
      index[item * k + place] = 0x7fffffff;
      distances[item * k + place] = __int_as_float(0x7fffffff);
    }
  }
}

__global__ void __launch_bounds__(256) squared_distances_kernel(const ProductTile tile) {
  for (int64_t r = blockIdx.x; r < tile.rows; r += gridDim.x) {
    const float own = tile.row_term[r];
    for (int64_t c = threadIdx.x; c < tile.columns; c += blockDim.x) {
      float* value = tile.values + r * tile.stride + c;
      *value = squared_distance(*value, own, tile.column_term[c], tile.cosine);
    }
  }
}

// Unsigned integers that order like the numbers: -0 like 0, NaN last.
__device__ uint64_t key_of(float distance, int64_t index) {
  distance = distance == 0 ? 0.0F : distance;
  uint32_t bits = static_cast<uint32_t>(__float_as_int(distance));
  bits = distance != distance ? ~0u : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint64_t>(index);
}
__device__ WideKey key_of(double distance, int64_t index) {
  distance = distance == 0 ? 0.0 : distance;
  uint64_t bits = static_cast<uint64_t>(__double_as_longlong(distance));
  bits = distance != distance ? ~uint64_t{0} : (bits >> 63) != 0 ? ~bits : bits | uint64_t{1} << 63;
  return static_cast<WideKey>(bits) << 64 | static_cast<uint64_t>(index);
}

template <typename T>
struct KeyType {
  typedef uint64_t type;
};
template <>
struct KeyType<double> {
  typedef WideKey type;
};

// With 7 blocks on a multiprocessor a thread has 72 registers; left alone, ptxas spills at 56.
template <typename T>
__global__ void __launch_bounds__(kWarpThreads, 7)
    nearest_in_rows_kernel(const T* distances, int64_t stride, int64_t rows, int64_t columns,
                           int64_t k, typename KeyType<T>::type* scratch, T* nearest,
                           int32_t* index) {
  typedef typename KeyType<T>::type Key;
  const int64_t slots = 2 * k + 16;
  for (int64_t row = warp_number(); row < rows; row += warp_count()) {
    const T* line = distances + row * stride;
    SmallestKeys<Key> smallest{scratch + row * slots, slots, k, 0, ~Key{0}};
    for (int64_t first = 0; first < columns; first += kWarp) {
      const int64_t column = first + lane();
      const bool there = column < columns;
      smallest.insert(there, key_of(there ? line[column] : T(0), column));
    }
    smallest.each_in_order([&](int64_t place, Key key) {
      const int32_t column = static_cast<int32_t>(static_cast<uint32_t>(key));
      index[row * k + place] = column;
      nearest[row * k + place] = line[column];
    });
  }
}

}  // namespace

cudaError_t launch_update(const TileUpdate& update, bool transposed, cudaStream_t stream) {
  return launch(update_kernel, blocks_for(update.items, kWarpsPerBlock), kWarpThreads, stream,
                update, transposed);
}

cudaError_t launch_ordered_candidates(const CandidateLists& lists, int64_t k, int32_t* index,
                                      float* distances, cudaStream_t stream) {
  return launch(ordered_candidates_kernel, blocks_for(lists.items, kWarpsPerBlock), kWarpThreads,
                stream, lists, k, index, distances);
}

cudaError_t launch_squared_distances(const ProductTile& tile, cudaStream_t stream) {
  return launch(squared_distances_kernel, blocks_for(tile.rows, 1), 256, stream, tile);
}

template <typename T>
int64_t nearest_slot_bytes() {
  return sizeof(typename KeyType<T>::type);
}

template <typename T>
cudaError_t launch_nearest_in_rows(const MatrixView<T>& distances, int64_t k, void* scratch,
                                   T* nearest, int32_t* index, cudaStream_t stream) {
  return launch(nearest_in_rows_kernel<T>, blocks_for(distances.rows, kWarpsPerBlock), kWarpThreads,
                stream, distances.values, distances.stride, distances.rows, distances.width, k,
                static_cast<typename KeyType<T>::type*>(scratch), nearest, index);
}

template int64_t nearest_slot_bytes<float>();
template int64_t nearest_slot_bytes<double>();
template cudaError_t launch_nearest_in_rows(const MatrixView<float>&, int64_t, void*, float*,
                                            int32_t*, cudaStream_t);
template cudaError_t launch_nearest_in_rows(const MatrixView<double>&, int64_t, void*, double*,
                                            int32_t*, cudaStream_t);

}  // namespace mmga
