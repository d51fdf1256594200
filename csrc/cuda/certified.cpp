// The host side of the operators of certified ranks; reference.py specifies them.
#include "cuda/certified.cuh"

#include "certified_arguments.h"
#include "cuda/host.h"
#include "cuda/k_reciprocal.cuh"

namespace mmga {
namespace {

constexpr int64_t kNumbers = sizeof(Undecided) / sizeof(int32_t);

// Turns lengths [count + 1] into offsets; returns room for what they ask for.
Tensor new_pairs(const Device& device, Tensor& lengths) {
  auto* offsets = output<int64_t>(lengths);
  const int64_t count = lengths.numel() - 1;
  STD_CUDA_CHECK(launch_offsets(offsets, count, device.stream()));
  return torch::stable::new_empty(lengths, {device.read(offsets + count), kNumbers},
                                  ScalarType::Int);
}

Undecided* pairs_of(Tensor& tensor) { return static_cast<Undecided*>(tensor.mutable_data_ptr()); }

Tensor count_certain(const Tensor& values, const Tensor& row_term, const Tensor& column_term,
                     int64_t metric, int64_t offset, const Tensor& row_radius,
                     const Tensor& column_radius, const Tensor& column_slack,
                     const Tensor& match_start, const Tensor& match_item, const Tensor& lower,
                     const Tensor& upper, const Tensor& ignored_start, const Tensor& ignored_item,
                     std::optional<Tensor> row_camera, std::optional<Tensor> column_camera,
                     std::optional<Tensor> removed, Tensor preceding) {
  const Intervals intervals =
      intervals_of(values, row_term, column_term, metric, offset, row_radius, column_radius,
                   column_slack, match_start, match_item, lower, upper, ignored_start, ignored_item,
                   row_camera, column_camera, removed, preceding);
  const int64_t rows = values.size(0), width = values.size(1);
  const Device device(values);
  Tensor lengths = torch::stable::new_zeros(values, {rows + 1}, ScalarType::Long);
  if (width > 0) {
    STD_CUDA_CHECK(launch_count_certain(intervals, output<int64_t>(lengths), device.stream()));
  }
  Tensor undecided = new_pairs(device, lengths);
  if (undecided.size(0) > 0) {
    STD_CUDA_CHECK(launch_list_undecided(intervals, input<int64_t>(lengths), pairs_of(undecided),
                                         device.stream()));
  }
  return undecided;
}

Tensor settle_pairs(const Tensor& undecided, const Tensor& x, const Tensor& y,
                    const Tensor& row_term, const Tensor& column_term, int64_t metric,
                    std::optional<Tensor> row_radius, std::optional<Tensor> column_radius,
                    std::optional<Tensor> row_slack, std::optional<Tensor> column_slack,
                    int64_t offset, const Tensor& match_start, const Tensor& match_item,
                    const Tensor& match_key, Tensor preceding, Tensor tied) {
  const Settlement settlement = settlement_of(
      undecided, x, y, row_term, column_term, metric, row_radius, column_radius, row_slack,
      column_slack, offset, match_start, match_item, match_key, preceding, tied);
  const int64_t count = undecided.size(0);
  const bool bounded = row_radius.has_value();
  const Device device(x);
  Tensor open =
      torch::stable::new_empty(undecided, {bounded ? count : 0, kNumbers}, ScalarType::Int);
  Tensor left = torch::stable::new_empty(undecided, {bounded ? count + 1 : 1}, ScalarType::Long);
  const auto* pairs = static_cast<const Undecided*>(undecided.data_ptr());
  const auto run = [&](auto value) {
    using T = decltype(value);
    STD_CUDA_CHECK(launch_settle_pairs(settlement, pairs, count, input<T>(x), input<T>(y),
                                       x.size(1), pairs_of(open), output<int64_t>(left),
                                       device.stream()));
  };
  settlement.key.integers ? run(int16_t{0}) : run(0.0F);
  if (!bounded || count == 0) return open;
  Tensor still = new_pairs(device, left);
  STD_CUDA_CHECK(launch_keep_pairs(pairs_of(open), count, input<int64_t>(left), pairs_of(still),
                                   device.stream()));
  return still;
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("count_certain", TORCH_BOX(&mmga::count_certain));
  m.impl("settle_pairs", TORCH_BOX(&mmga::settle_pairs));
}
