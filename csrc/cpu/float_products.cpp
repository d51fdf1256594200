// Inner products of float32 rows, by torch's product of parts that the threads share.
// mmga/ops/reference specifies the function.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "common/checks.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Rows or columns of a part at least: fewer are multiplied at a lower rate.
constexpr int64_t kFewest = 64;

// A matrix of float32 numbers in memory that others own.
struct Matrix {
  float* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix part(int64_t row, int64_t count, int64_t column, int64_t width) const {
    return {data + row * row_stride + column * column_stride, count, width, row_stride,
            column_stride};
  }
  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
  Tensor tensor() const {
    return torch::stable::from_blob(data, {rows, columns}, {row_stride, column_stride},
                                    {torch::headeronly::DeviceType::CPU, -1}, ScalarType::Float);
  }
};

Matrix matrix_of(const Tensor& given, const float* data) {
  return {const_cast<float*>(data), given.size(0), given.size(1), given.stride(0), given.stride(1)};
}

// Sets or adds products by the function of torch that takes no notice of how the caller's thread
// differentiates.
void multiply(const Matrix& x, const Matrix& y, bool add, const Matrix& out) {
  const Tensor to = out.tensor(), one = x.tensor(), other = y.transposed().tensor();
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(to.get(), to.get(), one.get(), other.get(), add ? 1 : 0, 1));
}

void float_products_(const Tensor& x, const Tensor& y, int64_t block, Tensor out) {
  const Arguments args("float_products_", x);
  const Matrix rows = matrix_of(x, args.input<float>(x, "x", {kAny, kAny}, Gaps::kAnywhere));
  const int64_t height = x.size(0), depth = x.size(1), width = y.size(0);
  const Matrix columns = matrix_of(y, args.input<float>(y, "y", {kAny, depth}, Gaps::kAnywhere));
  const Matrix to =
      matrix_of(out, args.output<float>(out, "out", {height, width}, Gaps::kBetweenRows));
  args.range("block", block, 1, INT64_MAX);
  const auto compute = [&](int64_t row, int64_t count, int64_t column, int64_t others) {
    const Matrix part = to.part(row, count, column, others);
    for (int64_t first = 0; first == 0 || first < depth; first += block) {
      const int64_t terms = std::min(block, depth - first);
      multiply(rows.part(row, count, first, terms), columns.part(column, others, first, terms),
               first > 0, part);
    }
  };
  if (height == 0 || width == 0) return;
  if (!threads_held()) {
    compute(0, height, 0, width);
  } else if (height > width) {
    share_ranges(height, kFewest,
                 [&](int64_t begin, int64_t end) { compute(begin, end - begin, 0, width); });
  } else {
    share_ranges(width, kFewest,
                 [&](int64_t begin, int64_t end) { compute(0, height, begin, end - begin); });
  }
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("float_products_", TORCH_BOX(&mmga::float_products_));
}
