// squared_norms on the CPU: one read of the features, bound by memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 15;
// The order of the sum is part of the result (reference.py, interleaved_sum).
constexpr int64_t kAccumulators = 8;
// Elements that are widened to float64 at a time; a multiple of kAccumulators.
constexpr int64_t kBlock = 256;

inline double widen(float value) { return value; }

// Without branches, so that it vectorises; infinity and NaN stay what they are.
inline double widen(torch::headeronly::Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.x & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.x & 0x7fff) << 13;
  const bool special = (magnitude & 0x0f800000) == 0x0f800000;
  // A half's exponent, read as a float's, is too small by 112: multiplying also mends subnormals.
  uint32_t bits = magnitude | (special ? 0x70000000u : 0u);
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  const float scaled = special ? result : result * 0x1p112f;
  std::memcpy(&bits, &scaled, sizeof(bits));
  bits |= sign;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
__attribute__((always_inline)) inline double squared_norm_body(const T* row, int64_t width) {
  double sum[kAccumulators] = {};
  double block[kBlock];
  for (int64_t start = 0; start < width; start += kBlock) {
    const int64_t length = std::min(kBlock, width - start);
    for (int64_t i = 0; i < length; ++i) block[i] = widen(row[start + i]);
    const int64_t whole = length / kAccumulators * kAccumulators;
    for (int64_t i = 0; i < whole; i += kAccumulators) {
      for (int64_t l = 0; l < kAccumulators; ++l) sum[l] += block[i + l] * block[i + l];
    }
    for (int64_t i = whole; i < length; ++i) sum[i - whole] += block[i] * block[i];
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

MMGA_VECTOR_CLONES double squared_norm(const float* row, int64_t width) {
  return squared_norm_body(row, width);
}
MMGA_VECTOR_CLONES double squared_norm(const torch::headeronly::Half* row, int64_t width) {
  return squared_norm_body(row, width);
}

template <typename T>
void squared_norms_of(const Tensor& x, double* norms) {
  const T* rows = static_cast<const T*>(x.data_ptr());
  const int64_t stride = x.stride(0);
  const int64_t width = x.size(1);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      norms[row] = squared_norm(rows + row * stride, width);
    }
  });
}

Tensor squared_norms(const Tensor& given) {
  STD_TORCH_CHECK(given.dim() == 2, "x must be [N, D]");
  const bool in_rows = given.stride(1) == 1 || given.size(1) <= 1;
  const Tensor x = in_rows ? given : torch::stable::contiguous(given);
  Tensor result = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  double* norms = static_cast<double*>(result.mutable_data_ptr());
  if (x.scalar_type() == ScalarType::Half) {
    squared_norms_of<torch::headeronly::Half>(x, norms);
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x must be float16 or float32");
    squared_norms_of<float>(x, norms);
  }
  return result;
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("squared_norms", TORCH_BOX(&mmga::squared_norms));
}
