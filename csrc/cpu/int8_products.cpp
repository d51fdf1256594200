// Inner products of rows of 8-bit integers as float32 on the CPU. mmga/ops/reference specifies the
// function.
#include "cpu/int8_products.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "common/checks.h"

namespace mmga {
namespace {

void int8_products_(const Tensor& x, const Tensor& y, const Tensor& row_unit,
                    const Tensor& column_unit, Tensor out) {
  const Arguments args("int8_products_", x);
  const auto* rows = args.input<int8_t>(x, "x", {kAny, kAny});
  const int64_t height = x.size(0), depth = x.size(1), width = y.size(0);
  args.range("columns of x", depth, 0, kWidestBytes);
  const auto* columns = args.input<int8_t>(y, "y", {kAny, depth});
  const auto* own = args.input<float>(row_unit, "row_unit", {height});
  const auto* others = args.input<float>(column_unit, "column_unit", {width});
  auto* to = args.output<float>(out, "out", {height, width}, Gaps::kBetweenRows);
  const int64_t stride = out.stride(0);
  PackedColumns packed(columns, width, depth);
  const int64_t chunks = (height + kRowChunk - 1) / kRowChunk;
  share(chunks, [&](const auto& next) {
    StripOfProducts strip(packed);
    for (int64_t chunk = next(); chunk < chunks; chunk = next()) {
      const int64_t first = chunk * kRowChunk;
      strip.compute(rows + first * depth, std::min(kRowChunk, height - first), 0, own + first,
                    others, to + first * stride, stride);
    }
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("int8_products_", TORCH_BOX(&mmga::int8_products_));
}
