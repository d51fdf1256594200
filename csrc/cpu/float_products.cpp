// Inner products of float32 rows, by torch's product of parts that the threads share.
// mmga/ops/reference specifies the function.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/checks.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Rows or columns of a part at least: fewer are multiplied at a lower rate.
constexpr int64_t kFewest = 64;
// Sums of a block of terms that are kept at once, about.
constexpr int64_t kSums = 1 << 19;

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

// Sets products by the function of torch that takes no notice of how the caller's thread
// differentiates.
void multiply(const Matrix& x, const Matrix& y, const Matrix& out) {
  const Tensor to = out.tensor(), one = x.tensor(), other = y.transposed().tensor();
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(to.get(), to.get(), one.get(), other.get(), 0, 1));
}

void add(const Matrix& sums, const Matrix& out) {
  for (int64_t r = 0; r < out.rows; ++r) {
    const float* from = sums.data + r * sums.row_stride;
    float* to = out.data + r * out.row_stride;
    for (int64_t c = 0; c < out.columns; ++c) to[c] += from[c];
  }
}

// Computes products of x and y, some terms at once. A product that torch adds to another may begin
// with it, as MKL's does in some layouts: its terms would go through the roundings of all blocks.
void sum_blocks(const Matrix& x, const Matrix& y, int64_t block, const Matrix& out) {
  const int64_t depth = x.columns;
  multiply(x.part(0, x.rows, 0, std::min(block, depth)),
           y.part(0, y.rows, 0, std::min(block, depth)), out);
  if (depth <= block) return;
  const std::unique_ptr<float[]> memory(new float[out.rows * out.columns]);
  const Matrix sums{memory.get(), out.rows, out.columns, out.columns, 1};
  for (int64_t first = block; first < depth; first += block) {
    const int64_t terms = std::min(block, depth - first);
    multiply(x.part(0, x.rows, first, terms), y.part(0, y.rows, first, terms), sums);
    add(sums, out);
  }
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
    const int64_t step = depth > block ? std::max(kFewest, kSums / others) : count;
    for (int64_t begin = row; begin < row + count; begin += step) {
      const int64_t some = std::min(step, row + count - begin);
      sum_blocks(rows.part(begin, some, 0, depth), columns.part(column, others, 0, depth), block,
                 to.part(begin, some, column, others));
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
