// count_preceding's arguments as raw arrays, shared by the CPU and the CUDA kernel.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "tile.h"

namespace mmga {

namespace detail {

template <typename T>
const T* pointer(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
const T* pointer(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor.has_value() ? pointer<T>(*tensor) : nullptr;
}

}  // namespace detail

template <typename T>
Tile<T> tile_of(const torch::stable::Tensor& values, const torch::stable::Tensor& row_term,
                const torch::stable::Tensor& column_term, int64_t metric, int64_t offset,
                const torch::stable::Tensor& match_start, const torch::stable::Tensor& match_item,
                const torch::stable::Tensor& match_key, const torch::stable::Tensor& ignored_start,
                const torch::stable::Tensor& ignored_item,
                const std::optional<torch::stable::Tensor>& row_camera,
                const std::optional<torch::stable::Tensor>& column_camera,
                const std::optional<torch::stable::Tensor>& removed,
                torch::stable::Tensor& preceding, torch::stable::Tensor& tied,
                torch::stable::Tensor& nearest, torch::stable::Tensor& moved) {
  using detail::pointer;
  return {
      pointer<T>(values),
      values.stride(0),
      values.size(0),
      values.size(1),
      pointer<T>(row_term),
      pointer<T>(column_term),
      metric,
      offset,
      pointer<int64_t>(match_start),
      pointer<int64_t>(match_item),
      pointer<T>(match_key),
      pointer<int64_t>(ignored_start),
      pointer<int64_t>(ignored_item),
      pointer<int32_t>(row_camera),
      pointer<int32_t>(column_camera),
      pointer<bool>(removed),
      removed.has_value() ? removed->stride(0) : 0,
      static_cast<int64_t*>(preceding.mutable_data_ptr()),
      static_cast<int64_t*>(tied.mutable_data_ptr()),
      static_cast<T*>(nearest.mutable_data_ptr()),
      static_cast<int64_t*>(moved.mutable_data_ptr()),
  };
}

}  // namespace mmga
