// The host side of the neighbour operators.
#include "args/knn.h"

#include <utility>

#include "cuda/host.h"
#include "cuda/knn.cuh"

namespace mmga {
namespace {

struct Cuda {
  static void select_neighbours(const Tensor& like, TileUpdate update) {
    const Device device(like);
    STD_CUDA_CHECK(launch_update(update, false, device.stream()));
    if (!update.symmetric) return;
    std::swap(update.item_step, update.other_step);
    std::swap(update.items, update.others);
    std::swap(update.item_term, update.other_term);
    std::swap(update.first_item, update.first_other);
    update.kept = nullptr;  // has its distances from the rows
    STD_CUDA_CHECK(launch_update(update, true, device.stream()));
  }

  static void ordered_candidates(const Tensor& like, const CandidateLists& lists, int64_t k,
                                 int32_t* index, float* distances) {
    const Device device(like);
    STD_CUDA_CHECK(launch_ordered_candidates(lists, k, index, distances, device.stream()));
  }

  static void squared_distances_(const Tensor& like, const ProductTile& tile) {
    const Device device(like);
    STD_CUDA_CHECK(launch_squared_distances(tile, device.stream()));
  }

  template <typename T>
  static void nearest_in_rows(const Tensor& like, const MatrixView<T>& distances, int64_t k,
                              T* nearest, int32_t* index) {
    const Device device(like);
    const int64_t bytes = distances.rows * (2 * k + 16) * nearest_slot_bytes<T>();
    const Tensor scratch = new_tensor<uint8_t>(like, {bytes});
    STD_CUDA_CHECK(launch_nearest_in_rows<T>(distances, k, scratch.mutable_data_ptr(), nearest,
                                             index, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("select_neighbours", TORCH_BOX(&mmga::select_neighbours<mmga::Cuda>));
  m.impl("ordered_candidates", TORCH_BOX(&mmga::ordered_candidates<mmga::Cuda>));
  m.impl("squared_distances_", TORCH_BOX(&mmga::squared_distances_<mmga::Cuda>));
  m.impl("nearest_in_rows", TORCH_BOX(&mmga::nearest_in_rows<mmga::Cuda>));
}
