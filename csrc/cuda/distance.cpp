// The host side of sums of products in float64.
#include "args/distance.h"

#include "cuda/distance.cuh"
#include "cuda/host.h"

namespace mmga {
namespace {

struct Cuda {
  template <typename T>
  static void squared_norms(const Tensor& like, const MatrixView<T>& x, double* norms) {
    const Device device(like);
    STD_CUDA_CHECK(launch_squared_norms(x, norms, device.stream()));
  }

  static void pair_sums(const Tensor& like, const PairSums& pairs, double* sums) {
    const Device device(like);
    STD_CUDA_CHECK(launch_pair_sums(pairs, sums, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("squared_norms", TORCH_BOX(&mmga::squared_norms<mmga::Cuda>));
  m.impl("pair_sums", TORCH_BOX(&mmga::pair_sums<mmga::Cuda>));
}
