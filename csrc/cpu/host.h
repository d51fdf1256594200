// Checks of what the host functions of the CPU's operators are given.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "ranking.h"

namespace mmga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks an array without gaps; a length below 0 is any.
inline void check(const Tensor& tensor, ScalarType type, int64_t length, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(length < 0 || tensor.numel() == length, name, " must have ", length, " values");
}

// Checks what describes a tile; returns the type of its values, float32 or float64.
inline ScalarType check_tile(const Tensor& values, const Tensor& row_term,
                             const Tensor& column_term, int64_t metric) {
  const ScalarType type = values.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "values must be float32 or float64");
  STD_TORCH_CHECK(values.dim() == 2 && (values.stride(1) == 1 || values.size(1) == 1),
                  "values must be [R, W] with contiguous rows");
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
  if (removed.has_value()) {
    STD_TORCH_CHECK(removed->scalar_type() == ScalarType::Bool && removed->dim() == 2 &&
                        removed->size(0) == rows && removed->size(1) == width &&
                        (removed->stride(1) == 1 || width == 1),
                    "removed must be bool [R, W] with contiguous rows");
  }
}

}  // namespace mmga
