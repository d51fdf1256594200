// Sums in float64: arguments, checked and as raw arrays. `Kernels` computes on the CPU
// or on a CUDA device.
#pragma once

#include "common/checks.h"
#include "common/knn.h"

namespace mmga {

template <typename Kernels>
Tensor squared_norms(const Tensor& x) {
  const Arguments args("squared_norms", x);
  args.tensor(x, "x", {ScalarType::Half, ScalarType::Float}, {kAny, kAny}, Gaps::kAnywhere);
  const bool in_rows = x.stride(1) == 1 || x.size(1) <= 1;
  const Tensor rows = in_rows ? x : torch::stable::contiguous(x);
  const Tensor norms = new_tensor<double>(x, {x.size(0)});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto* values = static_cast<const T*>(rows.const_data_ptr());
    const MatrixView<T> features{values, rows.stride(0), rows.size(0), rows.size(1)};
    Kernels::squared_norms(x, features, data_of<double>(norms));
  };
  // The bits of a float16: its own type has no arithmetic that vectorises.
  x.scalar_type() == ScalarType::Half ? run(uint16_t{0}) : run(0.0F);
  return norms;
}

template <typename Kernels>
Tensor pair_sums(const Tensor& x, const Tensor& y, const Tensor& rows, const Tensor& columns,
                 int64_t metric) {
  const Arguments args("pair_sums", x);
  const auto* left = args.input<float>(x, "x", {kAny, kAny});
  const auto* right = args.input<float>(y, "y", {kAny, x.size(1)});
  const int64_t count = rows.numel();
  args.range("metric", metric, kCosine, kEuclidean);
  const PairSums pairs{left,
                       right,
                       x.size(1),
                       args.input<int64_t>(rows, "rows", {count}),
                       args.input<int64_t>(columns, "columns", {count}),
                       count,
                       metric == kEuclidean};
  args.indices(pairs.rows, "rows", count, 0, x.size(0), "x");
  args.indices(pairs.columns, "columns", count, 0, y.size(0), "y");
  const Tensor sums = new_tensor<double>(x, {count});
  Kernels::pair_sums(x, pairs, data_of<double>(sums));
  return sums;
}

}  // namespace mmga
