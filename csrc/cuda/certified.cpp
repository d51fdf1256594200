// The host side of the operators of certified ranks and neighbours.
#include "args/certified.h"

#include "cuda/certified.cuh"
#include "cuda/host.h"
#include "cuda/sparse_rows.cuh"

namespace mmga {
namespace {

constexpr int64_t kNumbers = sizeof(Undecided) / sizeof(int32_t);

// Turns lengths [count + 1] into offsets; returns room for as many pairs.
Tensor new_pairs(const Device& device, const Tensor& lengths, int64_t numbers = kNumbers) {
  auto* offsets = data_of<int64_t>(lengths);
  const int64_t count = lengths.numel() - 1;
  STD_CUDA_CHECK(launch_offsets(offsets, count, device.stream()));
  return new_tensor<int32_t>(lengths, {device.read(offsets + count), numbers});
}

struct Cuda {
  static Tensor count_certain(const Tensor& like, const TileView<float>& tile,
                              const Intervals& intervals) {
    const Device device(like);
    const Tensor lengths = new_tensor<int64_t>(like, {tile.rows + 1});
    auto* offsets = data_of<int64_t>(lengths);
    STD_CUDA_CHECK(launch_count_certain(tile, intervals, offsets, device.stream()));
    const Tensor undecided = new_pairs(device, lengths);
    if (undecided.size(0) > 0) {
      STD_CUDA_CHECK(launch_list_undecided(tile, intervals, offsets, data_of<Undecided>(undecided),
                                           device.stream()));
    }
    return undecided;
  }

  static Tensor refine_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                             const Settlement& settlement) {
    const int64_t count = undecided.size(0);
    const bool bounded = settlement.row_radius != nullptr;
    const Device device(x);
    const Tensor open = new_tensor<int32_t>(undecided, {bounded ? count : 0, kNumbers});
    const Tensor left = new_tensor<int64_t>(undecided, {bounded ? count + 1 : 1});
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      const PairRows<T> rows{static_cast<const T*>(x.const_data_ptr()),
                             static_cast<const T*>(y.const_data_ptr()), x.size(1),
                             static_cast<const Undecided*>(undecided.const_data_ptr()), count};
      STD_CUDA_CHECK(launch_refine_pairs(settlement, rows, data_of<Undecided>(open),
                                         data_of<int64_t>(left), device.stream()));
    };
    settlement.key.integers ? run(int16_t{0}) : run(0.0F);
    if (!bounded || count == 0) return open;
    const Tensor still = new_pairs(device, left);
    STD_CUDA_CHECK(launch_keep_pairs(data_of<Undecided>(open), count, data_of<int64_t>(left),
                                     data_of<Undecided>(still), device.stream()));
    return still;
  }

  static Tensor list_bits(const Tensor& like, const int32_t* bits, int64_t rows, int64_t words) {
    const Device device(like);
    const Tensor lengths = new_tensor<int64_t>(like, {rows + 1});
    auto* offsets = data_of<int64_t>(lengths);
    STD_CUDA_CHECK(launch_count_bits(bits, rows, words, offsets, device.stream()));
    const Tensor pairs = new_pairs(device, lengths, 2);
    STD_CUDA_CHECK(
        launch_list_bits(bits, rows, words, offsets, data_of<int32_t>(pairs), device.stream()));
    return pairs;
  }

  static void add_candidates(const Tensor& like, const BoundedLists& nearest,
                             const BoundedLists& farthest, const FinePairs& pairs) {
    const Device device(like);
    STD_CUDA_CHECK(launch_add_candidates(nearest, farthest, pairs, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("count_certain", TORCH_BOX(&mmga::count_certain<mmga::Cuda>));
  m.impl("refine_pairs", TORCH_BOX(&mmga::refine_pairs<mmga::Cuda>));
  m.impl("list_bits", TORCH_BOX(&mmga::list_bits<mmga::Cuda>));
  m.impl("add_candidates_", TORCH_BOX(&mmga::add_candidates<mmga::Cuda>));
}
