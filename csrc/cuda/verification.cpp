// The host side of count_impostors.
#include "args/verification.h"

#include "cuda/host.h"
#include "cuda/verification.cuh"

namespace mmga {
namespace {

struct Cuda {
  template <typename T>
  static void count_impostors(const Tensor& like, const TileView<T>& tile,
                              const Histogram& histogram) {
    const Device device(like);
    STD_CUDA_CHECK(launch_count_impostors(tile, histogram, device.stream()));
  }
};

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) { m.impl("count_impostors", TORCH_BOX(&mmga::count_impostors<mmga::Cuda>)); }
