// Checks of the arguments of one operator call, the same for the CPU and CUDA: a kernel gets the
// raw pointer of a tensor only through the check of its dtype, shape, layout and device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "common/scalar.h"

namespace mmga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Extents = std::initializer_list<int64_t>;
constexpr int64_t kAny = -1;  // an extent that is not checked

// Which gaps a tensor may have in memory: none, between rows (its last dimension has none), any.
enum class Gaps { kNone, kBetweenRows, kAnywhere };

// Whether the values of offsets and indices are checked. On a device they are left to the Python
// wrappers: reading them would wait for the device. Tests that compile the CUDA sources for the CPU
// do likewise.
#ifdef USE_CUDA
constexpr bool kReadsValues = false;
#else
constexpr bool kReadsValues = true;
#endif

template <typename T>
constexpr ScalarType dtype_of = torch::headeronly::CppTypeToScalarType<T>::value;

inline const char* dtype_name(ScalarType type) {
  constexpr std::pair<ScalarType, const char*> kNames[] = {
      {ScalarType::Bool, "bool"},     {ScalarType::Char, "int8"},
      {ScalarType::Byte, "uint8"},    {ScalarType::Short, "int16"},
      {ScalarType::Int, "int32"},     {ScalarType::Long, "int64"},
      {ScalarType::Half, "float16"},  {ScalarType::BFloat16, "bfloat16"},
      {ScalarType::Float, "float32"}, {ScalarType::Double, "float64"},
  };
  for (const auto& [dtype, name] : kNames) {
    if (dtype == type) return name;
  }
  return torch::headeronly::toString(type);
}

// Returns [3, 7]; an extent that is not checked is *.
template <typename List>
std::string shape_text(const List& extents) {
  std::string text;
  for (const int64_t extent : extents) {
    text += (text.empty() ? "" : ", ") + (extent == kAny ? "*" : std::to_string(extent));
  }
  return "[" + text + "]";
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.device().type() == torch::headeronly::DeviceType::Meta ? "meta" : "another device";
}

// Returns a new tensor on the device of another.
template <typename T>
Tensor new_tensor(const Tensor& like, Extents shape) {
  return torch::stable::new_empty(like, shape, dtype_of<T>);
}

// The data of a tensor that this library made.
template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

class Arguments {
 public:
  // All tensors of the call must be on the device of `first`.
  Arguments(const char* op, const Tensor& first) : op_(op), device_(first.get_device_index()) {}

  template <typename... Words>
  [[noreturn, gnu::cold, gnu::noinline]] void fail(Words... words) const {
    std::ostringstream text;
    text << op_ << ": ";
    ((text << words), ...);
    throw std::runtime_error(text.str());
  }

  // Takes words by value: variables that are named where a check fails stay in registers.
  template <typename... Words>
  MMGA_INLINE void require(bool holds, Words... words) const {
    if (!holds) fail(words...);
  }

  void range(const char* name, int64_t value, int64_t low, int64_t high) const {
    require(low <= value && value <= high, name, ": expected ", low, " to ", high, ", found ",
            value);
  }

  void tensor(const Tensor& given, const char* name, std::initializer_list<ScalarType> dtypes,
              Extents shape, Gaps gaps = Gaps::kNone) const {
    const auto sizes = given.sizes();
    const ScalarType type = given.scalar_type();
    bool fits = is_here(given) && sizes.size() == shape.size() && has_layout(given, gaps);
    for (size_t d = 0; fits && d < shape.size(); ++d) {
      fits = shape.begin()[d] == kAny || shape.begin()[d] == sizes[d];
    }
    for (const ScalarType dtype : dtypes) {
      if (fits && dtype == type) return;
    }
    const char* const layouts[] = {"contiguous ", "row-contiguous ", ""};
    std::string expected;
    for (const ScalarType dtype : dtypes) {
      expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    }
    fail(name, ": expected a ", layouts[static_cast<int>(gaps)], expected, " tensor ",
         shape_text(shape), " on ", place(), ", found ", dtype_name(type), " ", shape_text(sizes),
         given.is_contiguous() ? "" : " with strides " + shape_text(given.strides()), " on ",
         device_text(given));
  }

  // Returns the data of a tensor, null where an optional one is absent.
  template <typename T>
  const T* input(const Tensor& given, const char* name, Extents shape,
                 Gaps gaps = Gaps::kNone) const {
    tensor(given, name, {dtype_of<T>}, shape, gaps);
    return static_cast<const T*>(given.const_data_ptr());
  }
  template <typename T>
  const T* input(const std::optional<Tensor>& given, const char* name, Extents shape,
                 Gaps gaps = Gaps::kNone) const {
    return given.has_value() ? input<T>(*given, name, shape, gaps) : nullptr;
  }
  template <typename T>
  T* output(const Tensor& given, const char* name, Extents shape, Gaps gaps = Gaps::kNone) const {
    tensor(given, name, {dtype_of<T>}, shape, gaps);
    return data_of<T>(given);
  }

  // Returns the offsets of lists in an array of `entries` values.
  const int64_t* offsets(const Tensor& given, const char* name, int64_t lists,
                         int64_t entries) const {
    const auto* begin = input<int64_t>(given, name, {lists == kAny ? kAny : lists + 1});
    require(given.numel() >= 1, name, ": expected at least one offset, found none");
    if (!kReadsValues) return begin;
    const int64_t last = given.numel() - 1;
    uint64_t signs = 0;  // of offsets and their differences, without a branch
    for (int64_t i = 0; i < last; ++i) {
      const auto low = static_cast<uint64_t>(begin[i]), high = static_cast<uint64_t>(begin[i + 1]);
      signs |= low | (high - low);
    }
    if (signs >> 63 == 0 && 0 <= begin[last] && begin[last] <= entries) return begin;
    for (int64_t i = 0; i <= last; ++i) {
      const int64_t least = i == 0 ? 0 : begin[i - 1], most = i == last ? entries : begin[i + 1];
      require(least <= begin[i] && begin[i] <= most, name,
              ": expected ascending offsets from 0 to ", entries, ", found ", begin[i], " at ", i);
    }
    return begin;
  }

  // Checks that `count` indices lie in [low, high), the range of `whole`.
  template <typename T>
  void indices(const T* values, const char* name, int64_t count, int64_t low, int64_t high,
               const char* whole) const {
    if (!kReadsValues) return;
    using Unsigned = std::make_unsigned_t<T>;
    const auto first = static_cast<Unsigned>(low), last = static_cast<Unsigned>(high - 1 - low);
    Unsigned signs = 0;  // of distances from both ends, without a branch
    for (int64_t i = 0; i < count; ++i) {
      const Unsigned place = static_cast<Unsigned>(values[i]) - first;
      signs |= place | (last - place);
    }
    if (signs >> (8 * sizeof(T) - 1) == 0) return;
    int64_t i = 0;
    while (low <= values[i] && values[i] < high) ++i;
    fail(name, ": found ", values[i], " at ", i, ", outside ", whole, ", expected ", low, " to ",
         high - 1);
  }

 private:
  static const char* place() {
#if defined(USE_CUDA) && !defined(MMGA_CUDA_EMULATION)
    return "the CUDA device of the first tensor";
#else
    return "cpu";
#endif
  }

  bool is_here(const Tensor& given) const {
#if defined(USE_CUDA) && !defined(MMGA_CUDA_EMULATION)
    return given.is_cuda() && given.get_device_index() == device_;
#else
    return given.is_cpu();
#endif
  }

  static bool has_layout(const Tensor& given, Gaps gaps) {
    if (gaps == Gaps::kNone) return given.is_contiguous();
    const int64_t last = given.dim() - 1;
    return gaps == Gaps::kAnywhere || given.size(last) <= 1 || given.stride(last) == 1;
  }

  const char* op_;
  [[maybe_unused]] int32_t device_;
};

// Calls body(T{}) with the C++ type, float or double, of a tensor's values.
template <typename Body>
auto for_floating(const Arguments& args, const Tensor& tensor, const char* name, const Body& body) {
  const ScalarType type = tensor.scalar_type();
  args.require(type == ScalarType::Float || type == ScalarType::Double, name,
               ": expected float32 or float64, found ", dtype_name(type));
  return type == ScalarType::Float ? body(0.0F) : body(0.0);
}

}  // namespace mmga
