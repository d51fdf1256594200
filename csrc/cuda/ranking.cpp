// The host side of the ranking operators.
#include "args/ranking.h"

#include "cuda/host.h"
#include "cuda/ranking.cuh"

namespace mmga {
namespace {

struct Cuda {
  template <typename T>
  static void sort_matches(const Tensor& like, const TileView<T>& tile,
                           const MatchLists<T>& lists) {
    const Device device(like);
    const Tensor item = new_tensor<int64_t>(like, {lists.count});
    const Tensor key = new_tensor<T>(like, {lists.count});
    STD_CUDA_CHECK(
        launch_sort_matches(tile, lists, data_of<int64_t>(item), data_of<T>(key), device.stream()));
  }

  template <typename T>
  static void count_preceding(const Tensor& like, const TileView<T>& tile,
                              const RankCounts<T>& counts) {
    const Device device(like);
    STD_CUDA_CHECK(launch_count_preceding(tile, counts, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("count_preceding", TORCH_BOX(&mmga::count_preceding<mmga::Cuda>));
  m.impl("read_matches", TORCH_BOX(&mmga::read_matches<mmga::Cuda>));
  m.impl("sort_matches", TORCH_BOX(&mmga::sort_matches<mmga::Cuda>));
}
