// The operators of Jaccard distances: their arguments, checked and as raw arrays. `Kernels`
// computes on the CPU or on a CUDA device.
#pragma once

#include <cmath>
#include <cstdint>

#include "args/k_reciprocal.h"

namespace mmga {

constexpr CsrNames kInvertedNames{"inverted_offsets", "inverted_rows", "inverted_values"};

// Checks which rows a call works on, and the columns of these rows. The columns of other rows and
// the entries of inverted indices are left to the Python wrappers, which take both from operators
// that make none out of range: a pass over all entries may cost more than the call.
inline const int64_t* chosen_rows(const Arguments& args, const Tensor& rows, const Csr& csr,
                                  const CsrNames& names = {}) {
  const auto* chosen = args.input<int64_t>(rows, "rows", {kAny});
  args.indices(chosen, "rows", rows.numel(), 0, csr.rows, "the items");
  for (int64_t r = 0; kReadsValues && r < rows.numel(); ++r) {
    const int64_t first = csr.offsets[chosen[r]], last = csr.offsets[chosen[r] + 1];
    args.indices(csr.columns + first, names.columns, last - first, 0, csr.rows, "the items");
  }
  return chosen;
}

// Returns the least overlap of pairs whose distance is at most `max_distance`.
inline double wanted_overlap(const Arguments& args, double max_distance) {
  args.require(max_distance < 1.0, "max_distance: expected below 1, found ", max_distance);
  return least_overlap(max_distance);
}

template <typename Kernels>
SparseRows jaccard_rows(const Tensor& offsets, const Tensor& columns, const Tensor& values,
                        const Tensor& inverted_offsets, const Tensor& inverted_rows,
                        const Tensor& inverted_values, const Tensor& rows,
                        std::optional<double> max_distance, bool upper) {
  const Arguments args("jaccard_rows", offsets);
  const Csr v = csr_rows(args, offsets, columns, values);
  const Csr inverted =
      csr_rows(args, inverted_offsets, inverted_rows, inverted_values, v.rows, kInvertedNames);
  const JaccardRows wanted{chosen_rows(args, rows, v), rows.numel(),
                           wanted_overlap(args, max_distance.value_or(std::nextafter(1.0, 0.0))),
                           upper};
  return Kernels::jaccard_rows(offsets, v, inverted, wanted);
}

template <typename Kernels>
Tensor mix_distances(const Tensor& squared, std::optional<Tensor> maxima, const Tensor& offsets,
                     const Tensor& columns, const Tensor& values, int64_t first, double lambda,
                     int64_t power, double scale) {
  const Arguments args("mix_distances", squared);
  return for_floating(args, squared, "squared", [&](auto zero) {
    using T = decltype(zero);
    const auto* given = args.input<T>(squared, "squared", {kAny, kAny}, Gaps::kBetweenRows);
    const MatrixView<T> matrix{given, squared.stride(0), squared.size(0), squared.size(1)};
    const Csr overlaps = csr_rows(args, offsets, columns, values, matrix.rows);
    // Kernels compare columns with the gallery's items on the way: they may be as many.
    args.range("power", power, 1, 2);
    const Mix mix{args.input<double>(maxima, "maxima", {matrix.rows}), first, lambda, power, scale};
    const Tensor result = new_tensor<double>(squared, {matrix.rows, matrix.width});
    Kernels::mix_distances(squared, matrix, overlaps, mix, data_of<double>(result));
    return result;
  });
}

}  // namespace mmga
