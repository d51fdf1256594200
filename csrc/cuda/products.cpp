// The host side of sums of products in float64; reference.py specifies the operators.
#include "cuda/products.cuh"

#include "cuda/host.h"

namespace mmga {
namespace {

Tensor squared_norms(const Tensor& given) {
  check_place(given, "x");
  STD_TORCH_CHECK(given.dim() == 2, "x must be [N, D]");
  const bool in_rows = given.stride(1) == 1 || given.size(1) <= 1;
  const Tensor x = in_rows ? given : torch::stable::contiguous(given);
  const Device device(x);
  Tensor result = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  const bool half = x.scalar_type() == ScalarType::Half;
  STD_TORCH_CHECK(half || x.scalar_type() == ScalarType::Float, "x must be float16 or float32");
  const auto run = [&](auto value) {
    STD_CUDA_CHECK(launch_squared_norms(input<decltype(value)>(x), x.stride(0), x.size(0),
                                        x.size(1), output<double>(result), device.stream()));
  };
  half ? run(uint16_t{0}) : run(0.0F);
  return result;
}

Tensor pair_products(Tensor x, Tensor y, Tensor rows, Tensor columns) {
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
                  "pair_products: x and y must be [N, D] and [M, D]");
  check(x, ScalarType::Float, -1, "x");
  check(y, ScalarType::Float, -1, "y");
  const int64_t pairs = rows.numel();
  check(rows, ScalarType::Long, pairs, "rows");
  check(columns, ScalarType::Long, pairs, "columns");
  const Device device(x);
  Tensor result = torch::stable::new_empty(x, {pairs}, ScalarType::Double);
  STD_CUDA_CHECK(launch_pair_products(input<float>(x), input<float>(y), x.size(1),
                                      input<int64_t>(rows), input<int64_t>(columns), pairs,
                                      output<double>(result), device.stream()));
  return result;
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("squared_norms", TORCH_BOX(&mmga::squared_norms));
  m.impl("pair_products", TORCH_BOX(&mmga::pair_products));
}
