// part_keys on the CPU: inner products of P parts to visibility-weighted distances.
//
// A row is taken in segments whose two sums stay in the L1 cache; each part's products are read
// once. Bound by memory: P values read and one written for each pair.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common.h"
#include "ranking.h"

namespace mmga {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSegment = 1024;
// Products that one thread should have before another is worth waking.
constexpr int64_t kGrain = 1 << 15;

// One segment of one row and one part.
struct Part {
  const float* products;
  float row_term;
  const float* column_term;
  float row_weight;
  const float* column_weight;
};

MMGA_VECTOR_CLONES void add_part(const Part& part, int64_t width, bool euclidean, float* numerator,
                                 float* denominator) {
  const float* products = part.products;
  const float* column_term = part.column_term;
  const float* column_weight = part.column_weight;
  const float row_term = part.row_term;
  const float row_weight = part.row_weight;
  for (int64_t j = 0; j < width; ++j) {
    float distance;
    if (euclidean) {
      const float square = (row_term + column_term[j]) - 2 * products[j];
      distance = std::sqrt(square < 0 ? 0 : square);
    } else {
      distance = 1 - (products[j] * row_term) * column_term[j];
    }
    const float weight = row_weight * column_weight[j];
    numerator[j] += weight * distance;
    denominator[j] += weight;
  }
}

MMGA_VECTOR_CLONES void divide(const float* numerator, const float* denominator, int64_t width,
                               float* keys) {
  for (int64_t j = 0; j < width; ++j) {
    keys[j] =
        denominator[j] > 0 ? numerator[j] / denominator[j] : std::numeric_limits<float>::infinity();
  }
}

void check_terms(const Tensor& tensor, int64_t parts, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == 2 &&
                      tensor.size(0) == parts && tensor.size(1) == size &&
                      (tensor.stride(1) == 1 || size == 1),
                  name, " must be float32 [", parts, ", ", size, "] with contiguous rows");
}

void part_keys(const Tensor& products, const Tensor& row_term, const Tensor& column_term,
               const Tensor& row_weight, const Tensor& column_weight, int64_t metric, Tensor keys) {
  STD_TORCH_CHECK(products.scalar_type() == ScalarType::Float && products.dim() == 3 &&
                      (products.stride(2) == 1 || products.size(2) == 1),
                  "products must be float32 [P, R, W] with contiguous rows");
  const int64_t parts = products.size(0);
  const int64_t rows = products.size(1);
  const int64_t width = products.size(2);
  STD_TORCH_CHECK(metric == kCosine || metric == kEuclidean, "metric must be 1 or 2");
  check_terms(row_term, parts, rows, "row_term");
  check_terms(column_term, parts, width, "column_term");
  check_terms(row_weight, parts, rows, "row_weight");
  check_terms(column_weight, parts, width, "column_weight");
  check_terms(keys, rows, width, "keys");
  const auto pointer = [](const Tensor& tensor) {
    return static_cast<const float*>(tensor.data_ptr());
  };
  const float* product = pointer(products);
  const int64_t product_part = products.stride(0);
  const int64_t product_row = products.stride(1);
  const float* terms[2] = {pointer(row_term), pointer(column_term)};
  const float* weights[2] = {pointer(row_weight), pointer(column_weight)};
  const int64_t term_stride[2] = {row_term.stride(0), column_term.stride(0)};
  const int64_t weight_stride[2] = {row_weight.stride(0), column_weight.stride(0)};
  float* out = static_cast<float*>(keys.mutable_data_ptr());
  const int64_t out_row = keys.stride(0);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, parts * width));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    alignas(64) float numerator[kSegment];
    alignas(64) float denominator[kSegment];
    for (int64_t row = first; row < last; ++row) {
      for (int64_t start = 0; start < width; start += kSegment) {
        const int64_t count = std::min(kSegment, width - start);
        std::fill(numerator, numerator + count, 0.0F);
        std::fill(denominator, denominator + count, 0.0F);
        for (int64_t part = 0; part < parts; ++part) {
          add_part({product + part * product_part + row * product_row + start,
                    terms[0][part * term_stride[0] + row], terms[1] + part * term_stride[1] + start,
                    weights[0][part * weight_stride[0] + row],
                    weights[1] + part * weight_stride[1] + start},
                   count, metric == kEuclidean, numerator, denominator);
        }
        divide(numerator, denominator, count, out + row * out_row + start);
      }
    }
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) { m.impl("part_keys", TORCH_BOX(&mmga::part_keys)); }
