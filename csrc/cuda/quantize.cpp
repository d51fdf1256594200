// The host side of the operators that round features.
#include "common/quantize.h"

#include <tuple>

#include "common/checks.h"
#include "cuda/host.h"
#include "cuda/quantize.cuh"

namespace mmga {
namespace {

FeatureRows feature_rows(const Arguments& args, const Tensor& x) {
  return {args.input<float>(x, "x", {kAny, kAny}), x.size(0), x.size(1)};
}

std::tuple<Tensor, Tensor> int16_rows(const Tensor& x, const Tensor& norms) {
  const Arguments args("int16_rows", x);
  const FeatureRows rows = feature_rows(args, x);
  args.range("columns of x", rows.width, 0, kWidestShorts);
  const auto* squared = args.input<double>(norms, "norms", {rows.rows});
  const Tensor numbers = new_tensor<int16_t>(x, {rows.rows, rows.width});
  const Tensor errors = new_tensor<double>(x, {rows.rows});
  const Device device(x);
  STD_CUDA_CHECK(launch_int16_rows(rows, squared, data_of<int16_t>(numbers),
                                   data_of<double>(errors), device.stream()));
  return {numbers, errors};
}

std::tuple<Tensor, Tensor, Tensor> int8_rows(const Tensor& x, int64_t most) {
  const Arguments args("int8_rows", x);
  args.range("most", most, 1, kMostOfByte);
  const FeatureRows rows = feature_rows(args, x);
  const Tensor numbers = new_tensor<int8_t>(x, {rows.rows, rows.width});
  const Tensor units = new_tensor<float>(x, {rows.rows});
  const Tensor errors = new_tensor<double>(x, {rows.rows});
  const Device device(x);
  STD_CUDA_CHECK(launch_int8_rows(rows, static_cast<float>(most), data_of<int8_t>(numbers),
                                  data_of<float>(units), data_of<double>(errors), device.stream()));
  return {numbers, units, errors};
}

}  // namespace
}  // namespace mmga

MMGA_CUDA_LIBRARY(m) {
  m.impl("int16_rows", TORCH_BOX(&mmga::int16_rows));
  m.impl("int8_rows", TORCH_BOX(&mmga::int8_rows));
}
