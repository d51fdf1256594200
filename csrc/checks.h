// Checks of what the host functions of operators are given, on the CPU and on CUDA devices.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "ranking.h"

namespace mmga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks that a tensor lies where this library's operators compute. Torch gives those of CUDA
// whatever lies beside a tensor on a device; tests compile them for the CPU.
inline void check_place(const Tensor& tensor, const char* name) {
#if defined(USE_CUDA) && !defined(MMGA_CUDA_EMULATION)
  STD_TORCH_CHECK(tensor.is_cuda(), name, " must lie on the CUDA device");
#else
  STD_TORCH_CHECK(!tensor.is_cuda(), name, " must lie on the CPU");
#endif
}

// Checks an array without gaps; a length below 0 is any.
inline void check(const Tensor& tensor, ScalarType type, int64_t length, const char* name) {
  check_place(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(length < 0 || tensor.numel() == length, name, " must have ", length, " values");
}

// Checks a matrix whose rows have no gaps; a height or width below 0 is any.
inline void check_rows(const Tensor& tensor, int64_t height, int64_t width, const char* name) {
  check_place(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 2 && (height < 0 || tensor.size(0) == height) &&
                      (width < 0 || tensor.size(1) == width) &&
                      (tensor.stride(1) == 1 || tensor.size(1) <= 1),
                  name, " has the wrong shape, or its rows have gaps");
}

// The same for values of one type.
inline void check_rows(const Tensor& tensor, ScalarType type, int64_t height, int64_t width,
                       const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  check_rows(tensor, height, width, name);
}

inline void check_floating(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, name,
      " must be float32 or float64");
}

// Checks what describes a tile; returns the type of its values, float32 or float64.
inline ScalarType check_tile(const Tensor& values, const Tensor& row_term,
                             const Tensor& column_term, int64_t metric) {
  const ScalarType type = values.scalar_type();
  check_floating(values, "values");
  check_rows(values, -1, -1, "values");
  STD_TORCH_CHECK(metric >= kGiven && metric <= kEuclidean, "metric must be 0, 1 or 2");
  if (metric != kGiven) {
    check(row_term, type, values.size(0), "row_term");
    check(column_term, type, values.size(1), "column_term");
  }
  return type;
}

// Checks what names the items of a tile of this size that are left out.
inline void check_left_out(const Tensor& ignored_start, const Tensor& ignored_item,
                           const std::optional<Tensor>& row_camera,
                           const std::optional<Tensor>& column_camera,
                           const std::optional<Tensor>& removed, int64_t rows, int64_t width) {
  check(ignored_start, ScalarType::Long, rows + 1, "ignored_start");
  check(ignored_item, ScalarType::Long, -1, "ignored_item");
  STD_TORCH_CHECK(row_camera.has_value() == column_camera.has_value(),
                  "row_camera and column_camera come together");
  if (row_camera.has_value()) {
    check(*row_camera, ScalarType::Int, rows, "row_camera");
    check(*column_camera, ScalarType::Int, width, "column_camera");
  }
  if (removed.has_value()) check_rows(*removed, ScalarType::Bool, rows, width, "removed");
}

}  // namespace mmga
