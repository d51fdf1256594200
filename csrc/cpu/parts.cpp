// part_keys on the CPU: inner products of P parts to visibility-weighted distances.
//
// A row is taken in segments whose two sums fit the L1 cache; each part's products are read
// once. Bound by memory: P values read and one written for each pair.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/knn.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

constexpr int64_t kSegment = 1024;

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

void part_keys(const Tensor& products, const Tensor& row_term, const Tensor& column_term,
               const Tensor& row_weight, const Tensor& column_weight, int64_t metric, Tensor keys) {
  const Arguments args("part_keys", products);
  const Extents any{kAny, kAny, kAny};
  const auto* product = args.input<float>(products, "products", any, Gaps::kBetweenRows);
  const int64_t parts = products.size(0), rows = products.size(1), width = products.size(2);
  const int64_t product_part = products.stride(0), product_row = products.stride(1);
  args.range("metric", metric, kCosine, kEuclidean);
  const auto matrix = [&](const Tensor& given, const char* name, int64_t size) {
    const auto* values = args.input<float>(given, name, {parts, size}, Gaps::kBetweenRows);
    return MatrixView<float>{values, given.stride(0), parts, size};
  };
  const auto row_terms = matrix(row_term, "row_term", rows);
  const auto row_weights = matrix(row_weight, "row_weight", rows);
  const auto column_terms = matrix(column_term, "column_term", width);
  const auto column_weights = matrix(column_weight, "column_weight", width);
  auto* out = args.output<float>(keys, "keys", {rows, width}, Gaps::kBetweenRows);
  const int64_t out_row = keys.stride(0), grain = rows_per_thread(parts * width);
  share_ranges(rows, grain, [&](int64_t first, int64_t last) {
    alignas(64) float numerator[kSegment];
    alignas(64) float denominator[kSegment];
    for (int64_t row = first; row < last; ++row) {
      for (int64_t start = 0; start < width; start += kSegment) {
        const int64_t count = std::min(kSegment, width - start);
        std::fill(numerator, numerator + count, 0.0F);
        std::fill(denominator, denominator + count, 0.0F);
        for (int64_t part = 0; part < parts; ++part) {
          add_part({product + part * product_part + row * product_row + start,
                    row_terms.row(part)[row], column_terms.row(part) + start,
                    row_weights.row(part)[row], column_weights.row(part) + start},
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
