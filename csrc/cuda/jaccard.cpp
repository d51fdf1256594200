// The host side of the operators of Jaccard distances.
#include "args/jaccard.h"

#include "cuda/jaccard.cuh"
#include "cuda/sparse_rows.h"

namespace mmga {
namespace {

struct Cuda {
  static SparseRows jaccard_rows(const Tensor& like, const Csr& rows, const Csr& inverted,
                                 const JaccardRows& wanted) {
    const Device device(like);
    const Tables tables(like, wanted.count, rows.rows, true);
    const NewRows made = make_rows(device, like, wanted.count, true, [&](const RowsOut& out) {
      return launch_jaccard_rows(rows, inverted, wanted, out, tables.scratch(), device.stream());
    });
    return {made.offsets, made.columns, made.values};
  }

  template <typename T>
  static void mix_distances(const Tensor& like, const MatrixView<T>& squared, const Csr& overlaps,
                            const Mix& mix, double* result) {
    const Device device(like);
    STD_CUDA_CHECK(launch_mix_distances(squared, overlaps, mix, result, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("jaccard_rows", TORCH_BOX(&mmga::jaccard_rows<mmga::Cuda>));
  m.impl("mix_distances", TORCH_BOX(&mmga::mix_distances<mmga::Cuda>));
}
