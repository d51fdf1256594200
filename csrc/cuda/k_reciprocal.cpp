// The host side of the operators of k-reciprocal encoding.
#include "args/k_reciprocal.h"

#include "cuda/k_reciprocal.cuh"
#include "cuda/sparse_rows.h"

namespace mmga {
namespace {

struct Cuda {
  static Sets reciprocal_sets(const Tensor& like, const NeighbourLists& lists) {
    const Device device(like);
    const Tables tables(like, lists.items, lists.items, false);
    const NewRows made = make_rows(device, like, lists.items, false, [&](const RowsOut& out) {
      return launch_reciprocal_sets(lists, out, tables.scratch(), device.stream());
    });
    return {made.offsets, made.columns};
  }

  static Sets expand_sets(const Tensor& like, const Csr& sets, const Csr& half) {
    const Device device(like);
    const Tables tables(like, sets.rows, sets.rows, false);
    const NewRows made = make_rows(device, like, sets.rows, false, [&](const RowsOut& out) {
      return launch_expand_sets(sets, half, out, tables.scratch(), device.stream());
    });
    return {made.offsets, made.columns};
  }

  template <typename T>
  static void listed_distances(const Tensor& like, const Csr& sets, const NeighbourLists& lists,
                               const T* distances, double* result) {
    const Device device(like);
    STD_CUDA_CHECK(launch_listed_distances(sets, lists, distances, result, device.stream()));
  }

  static void encode(const Tensor& like, const Csr& rows, const double* maxima, double* weights) {
    const Device device(like);
    STD_CUDA_CHECK(launch_encode(rows, maxima, weights, device.stream()));
  }

  static SparseRows average_rows(const Tensor& like, const Csr& rows, const NeighbourLists& lists) {
    const Device device(like);
    const Tables tables(like, rows.rows, rows.rows, true);
    const NewRows made = make_rows(device, like, rows.rows, true, [&](const RowsOut& out) {
      return launch_average_rows(rows, lists, out, tables.scratch(), device.stream());
    });
    return {made.offsets, made.columns, made.values};
  }

  static SparseRows transpose_rows(const Tensor& like, const Csr& rows, int64_t first) {
    const Device device(like);
    const int64_t n = rows.rows;
    const Tensor inverted = torch::stable::new_zeros(like, {n + 1});
    const Tensor next = torch::stable::new_zeros(like, {n});
    auto* begin_of = data_of<int64_t>(inverted);
    STD_CUDA_CHECK(launch_count_columns(rows, first, begin_of, device.stream()));
    STD_CUDA_CHECK(launch_offsets(begin_of, n, device.stream()));
    const int64_t total = device.read(begin_of + n);
    const auto columns = [&] { return new_tensor<int32_t>(like, {total}); };
    const auto values = [&] { return new_tensor<double>(like, {total}); };
    const Tensor loose_rows = columns(), out_rows = columns();
    const Tensor loose_values = values(), out_values = values();
    if (total > 0) {
      const Tables tables(like, n, n, true);
      const Entries loose{data_of<int32_t>(loose_rows), data_of<double>(loose_values)};
      const Entries out{data_of<int32_t>(out_rows), data_of<double>(out_values)};
      STD_CUDA_CHECK(launch_transpose_rows(rows, first, begin_of, data_of<int64_t>(next), loose,
                                           out, tables.scratch(), device.stream()));
    }
    return {inverted, out_rows, out_values};
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("reciprocal_sets", TORCH_BOX(&mmga::reciprocal_sets<mmga::Cuda>));
  m.impl("expand_sets", TORCH_BOX(&mmga::expand_sets<mmga::Cuda>));
  m.impl("listed_distances", TORCH_BOX(&mmga::listed_distances<mmga::Cuda>));
  m.impl("encode", TORCH_BOX(&mmga::encode<mmga::Cuda>));
  m.impl("average_rows", TORCH_BOX(&mmga::average_rows<mmga::Cuda>));
  m.impl("transpose_rows", TORCH_BOX(&mmga::transpose_rows<mmga::Cuda>));
}
