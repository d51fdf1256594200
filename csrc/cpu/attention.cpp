// attention_multiply and attention_pool on the CPU, forward and backward.
//
// A feature map is read as images x lines x length: in NCHW a line is one channel's pixels, in
// channels_last one pixel's channels. The two attention parts then trade places: one of them is a
// factor per line, the other a factor per element of every line. All loops over elements are in the
// functions marked MMGA_VECTOR_CLONES; they are bound by memory, N bytes of feature map moving 2N
// (multiply), 3N (its gradient), N (pool), N to 2N (its gradient).
//
// Sums are split into fixed chunks, so results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>

#include "common/checks.h"
#include "common/dispatch.h"

namespace mmga {
namespace {

using torch::headeronly::MemoryFormat;
using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

// Lines whose sums over elements go into one partial result, and channels of one task of the
// channels_last pooling kernels (their running maxima fit the L1 cache).
constexpr int64_t kLinesPerChunk = 64;
constexpr int64_t kChannelsPerTile = 256;
// Pixels whose maximum is found by vector code before the first place of it is sought.
constexpr int64_t kMaximumBlock = 32;

// The type in which values of type T are accumulated.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Conversions without branches or table look-ups: these vectorise, the type's own do not.
inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.x) << 16); }
inline float widen(Half value) {  // without arithmetic on subnormals, which gradients may be
  const uint32_t magnitude = static_cast<uint32_t>(value.x & 0x7fff) << 13;
  const uint32_t exponent = magnitude & 0x0f800000;
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t special = magnitude + (224u << 23);  // infinity and NaN
  const float subnormal = bit_cast<float>(magnitude + (113u << 23)) - bit_cast<float>(113u << 23);
  uint32_t bits = exponent == 0 ? bit_cast<uint32_t>(subnormal) : normal;
  bits = exponent == 0x0f800000 ? special : bits;
  return bit_cast<float>(bits | static_cast<uint32_t>(value.x & 0x8000) << 16);
}

// Rounded to nearest, ties to even.
inline void narrow(double& to, double value) { to = value; }
inline void narrow(float& to, float value) { to = value; }
inline void narrow(BFloat16& to, float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.x = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}
inline void narrow(Half& to, float value) {
  const uint32_t sign = bit_cast<uint32_t>(value) & 0x80000000;
  const uint32_t bits = bit_cast<uint32_t>(value) ^ sign;
  const uint32_t half = bit_cast<uint32_t>(0.5f);
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - half;
  const uint32_t normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  uint32_t result = bits < (113u << 23) ? subnormal : normal;
  result = bits >= (143u << 23) ? (bits > 0x7f800000 ? 0x7e00u : 0x7c00u) : result;
  to.x = static_cast<uint16_t>(result | sign >> 16);
}

// out = (x * factor) * gate; the factor per element, the gate per line.
template <typename T>
MMGA_VECTOR_CLONES void multiply_plane(T* __restrict out, const T* __restrict x,
                                       const acc_t<T>* __restrict factor, acc_t<T> gate,
                                       int64_t length) {
  for (int64_t i = 0; i < length; ++i) narrow(out[i], widen(x[i]) * factor[i] * gate);
}

// out = (x * factor) * gate; the factor per line, the gate per element.
template <typename T>
MMGA_VECTOR_CLONES void multiply_pixel(T* __restrict out, const T* __restrict x, acc_t<T> factor,
                                       const acc_t<T>* __restrict gate, int64_t length) {
  for (int64_t i = 0; i < length; ++i) narrow(out[i], widen(x[i]) * factor * gate[i]);
}

// One line of the gradient of a product with `vector` (per element) and `scalar` (per line). Adds
// the gradient of `vector` to `vector_grad` and returns that of `scalar`.
template <typename T>
MMGA_VECTOR_CLONES acc_t<T> multiply_backward_line(T* __restrict grad_x, const T* __restrict grad,
                                                   const T* __restrict x,
                                                   const acc_t<T>* __restrict vector,
                                                   acc_t<T> scalar,
                                                   acc_t<T>* __restrict vector_grad,
                                                   int64_t length) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < length; ++i) {
    const acc_t<T> g = widen(grad[i]);
    const acc_t<T> product = g * widen(x[i]);
    narrow(grad_x[i], g * vector[i] * scalar);
    vector_grad[i] += product * scalar;
    sum += product * vector[i];
  }
  return sum;
}

template <typename T>
MMGA_INLINE acc_t<T> block_maximum(const T* x, const acc_t<T>* factor, int64_t length,
                                   bool* has_nan) {
  acc_t<T> best = -std::numeric_limits<acc_t<T>>::infinity();
  int nan = 0;
#pragma omp simd reduction(max : best) reduction(| : nan)
  for (int64_t i = 0; i < length; ++i) {
    const acc_t<T> value = widen(x[i]) * factor[i];
    best = value > best ? value : best;
    nan |= value != value;
  }
  *has_nan = nan != 0;
  return best;
}

// The lowest place of the largest x * factor, or of the first NaN.
template <typename T>
MMGA_VECTOR_CLONES int64_t first_maximum(const T* __restrict x, const acc_t<T>* __restrict factor,
                                         int64_t length) {
  acc_t<T> best = -std::numeric_limits<acc_t<T>>::infinity();
  int64_t block = 0;
  bool nan = false;
  for (int64_t i = 0; i < length && !nan; i += kMaximumBlock) {
    const acc_t<T> value = i + kMaximumBlock <= length
                               ? block_maximum(x + i, factor + i, kMaximumBlock, &nan)
                               : block_maximum(x + i, factor + i, length - i, &nan);
    if (nan || value > best) {
      best = value;
      block = i;
    }
  }
  for (int64_t i = block;; ++i) {
    const acc_t<T> value = widen(x[i]) * factor[i];
    if (nan ? value != value : value == best) return i;
  }
}

// Takes one more pixel into the running maxima of its channels; a NaN, once taken, stays.
template <typename T>
MMGA_VECTOR_CLONES void update_maxima(acc_t<T>* __restrict best, int32_t* __restrict place,
                                      const T* __restrict x, acc_t<T> factor, int32_t pixel,
                                      int64_t length) {
  for (int64_t i = 0; i < length; ++i) {
    const acc_t<T> value = widen(x[i]) * factor;
    const bool take = !(value <= best[i]) & (best[i] == best[i]);
    best[i] = take ? value : best[i];
    place[i] = take ? pixel : place[i];
  }
}

template <typename T>
MMGA_VECTOR_CLONES acc_t<T> dot(const T* __restrict x, const acc_t<T>* __restrict factor,
                                int64_t length) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < length; ++i) sum += widen(x[i]) * factor[i];
  return sum;
}

template <typename T>
MMGA_VECTOR_CLONES void add_scaled(acc_t<T>* __restrict sums, const T* __restrict x,
                                   acc_t<T> factor, int64_t length) {
  for (int64_t i = 0; i < length; ++i) sums[i] += widen(x[i]) * factor;
}

// One line of the gradient of a sum of x * vector * scalar: adds to the gradients of x and of
// `vector`, and returns that of `scalar`.
template <typename T>
MMGA_VECTOR_CLONES acc_t<T> average_backward_line(acc_t<T>* __restrict grad_x,
                                                  acc_t<T>* __restrict vector_grad,
                                                  const T* __restrict x,
                                                  const acc_t<T>* __restrict vector,
                                                  acc_t<T> scalar, int64_t length) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < length; ++i) {
    const acc_t<T> value = widen(x[i]);
    grad_x[i] += scalar * vector[i];
    vector_grad[i] += scalar * value;
    sum += value * vector[i];
  }
  return sum;
}

template <typename T>
MMGA_VECTOR_CLONES void narrow_line(T* __restrict out, const acc_t<T>* __restrict values,
                                    int64_t length) {
  for (int64_t i = 0; i < length; ++i) narrow(out[i], values[i]);
}

struct Shape {
  int64_t images, channels, height, width, pixels;
  bool channels_last;
  int64_t lines() const { return channels_last ? pixels : channels; }
  int64_t length() const { return channels_last ? channels : pixels; }
};

// A feature map in memory: element (b, line, i) is at b * image + line * stride + i.
template <typename T>
struct Map {
  T* data;
  int64_t image, stride;
  T* line(int64_t b, int64_t index) const { return data + b * image + index * stride; }
};

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Rows i * h / n up to (i + 1) * h / n, counted in pixels.
Range stripe(const Shape& shape, int64_t stripes, int64_t index) {
  return {index * shape.height / stripes * shape.width,
          (index + 1) * shape.height / stripes * shape.width};
}

// The rule of memory_format in mmga/ops/attention.py.
Shape shape_of(const Tensor& x) {
  const int64_t pixels = x.size(2) * x.size(3);
  return {x.size(0), x.size(1), x.size(2),
          x.size(3), pixels,    x.size(1) > 1 && pixels > 1 && x.stride(1) == 1};
}

MemoryFormat format_of(const Shape& shape) {
  return shape.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

int64_t pixel_stride(const Tensor& x) {
  if (x.size(3) > 1) return x.stride(3);
  return x.size(2) > 1 ? x.stride(2) : 1;
}

// The tensor itself if its lines can be read in place (slices of images, channels and rows can),
// else a copy in the layout of `shape`.
Tensor with_lines(const Tensor& x, const Shape& shape) {
  const bool flat = x.size(2) <= 1 || x.size(3) <= 1 || x.stride(2) == x.size(3) * x.stride(3);
  const bool dense = shape.channels_last ? x.stride(1) == 1 : pixel_stride(x) == 1;
  return flat && dense ? x : torch::stable::contiguous(x, format_of(shape));
}

template <typename T>
Map<const T> read(const Tensor& x, const Shape& shape) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0),
          shape.channels_last ? pixel_stride(x) : x.stride(1)};
}

template <typename T>
Map<T> write(const Tensor& x, const Shape& shape) {
  return {static_cast<T*>(x.mutable_data_ptr()), shape.channels * shape.pixels, shape.length()};
}

Tensor empty_map(const Tensor& x, const Shape& shape) {
  return torch::stable::empty({shape.images, shape.channels, shape.height, shape.width},
                              x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              format_of(shape));
}

template <typename A>
constexpr ScalarType working_dtype() {
  return std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
}

template <typename A>
Tensor widened(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, working_dtype<A>()));
}

// torch's own sigmoid, so that products and the places of their maxima equal the reference's.
template <typename A>
Tensor sigmoid(const Tensor& logits) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(widened<A>(logits))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sigmoid", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename A>
const A* data(const Tensor& tensor) {
  return static_cast<const A*>(tensor.const_data_ptr());
}

// S or 1 + S.
template <typename A>
std::unique_ptr<A[]> factors(const Tensor& s, bool residual) {
  const int64_t count = s.numel();
  std::unique_ptr<A[]> result(new A[count]);
  const A* values = data<A>(s);
  for (int64_t i = 0; i < count; ++i) result[i] = residual ? 1 + values[i] : values[i];
  return result;
}

template <typename F>
void for_each(int64_t tasks, int64_t elements_per_task, const F& body) {
  const int64_t grain = rows_per_thread(elements_per_task);
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) body(task);
  });
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Gradients with respect to the sigmoids `values` become gradients of the logits, in their dtype.
template <typename A>
Tensor logit_gradient(const Tensor& values, const A* grad, const Tensor& logits) {
  Tensor result = torch::stable::new_empty(values, values.sizes());
  A* out = static_cast<A*>(result.mutable_data_ptr());
  const A* s = data<A>(values);
  const int64_t count = values.numel();
  for (int64_t i = 0; i < count; ++i) out[i] = grad[i] * (s[i] * (1 - s[i]));
  return torch::stable::to(result, logits.scalar_type());
}

// Sums `chunks` partial results of `size` values each into `out`.
template <typename A>
void sum_chunks(A* out, const A* partial, int64_t chunks, int64_t size) {
  std::fill(out, out + size, A(0));
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < size; ++i) out[i] += partial[chunk * size + i];
}

template <typename T>
Tensor multiply(const Tensor& given, const Tensor& spatial, const Tensor& channel, bool residual) {
  using A = acc_t<T>;
  const Shape shape = shape_of(given);
  const Tensor source = with_lines(given, shape);
  const Tensor result = empty_map(given, shape);
  const Map<const T> x = read<T>(source, shape);
  const Map<T> out = write<T>(result, shape);
  const Tensor gates = sigmoid<A>(channel);
  const std::unique_ptr<A[]> factor = factors<A>(sigmoid<A>(spatial), residual);
  const A* gate = data<A>(gates);
  const int64_t lines = shape.lines();
  for_each(shape.images * lines, shape.length(), [&](int64_t task) {
    const int64_t b = task / lines, line = task % lines;
    const A* f = factor.get() + b * shape.pixels;
    const A* g = gate + b * shape.channels;
    if (shape.channels_last) {
      multiply_pixel(out.line(b, line), x.line(b, line), f[line], g, shape.channels);
    } else {
      multiply_plane(out.line(b, line), x.line(b, line), f, g[line], shape.pixels);
    }
  });
  return result;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
Gradients multiply_backward(const Tensor& given_grad, const Tensor& given, const Tensor& spatial,
                            const Tensor& channel, bool residual) {
  using A = acc_t<T>;
  const Shape shape = shape_of(given);
  const Tensor source = with_lines(given, shape);
  const Tensor grads = with_lines(torch::stable::to(given_grad, given.scalar_type()), shape);
  const Tensor result = empty_map(given, shape);
  const Map<const T> x = read<T>(source, shape);
  const Map<const T> grad = read<T>(grads, shape);
  const Map<T> grad_x = write<T>(result, shape);
  const Tensor s = sigmoid<A>(spatial);
  const Tensor c = sigmoid<A>(channel);
  const std::unique_ptr<A[]> factor = factors<A>(s, residual);

  const A* vector = shape.channels_last ? data<A>(c) : factor.get();
  const A* scalar = shape.channels_last ? factor.get() : data<A>(c);
  const int64_t lines = shape.lines(), length = shape.length();
  const int64_t chunks = ceil_div(lines, kLinesPerChunk);
  std::unique_ptr<A[]> partial(new A[shape.images * chunks * length]);
  std::unique_ptr<A[]> vector_grad(new A[shape.images * length]);
  std::unique_ptr<A[]> scalar_grad(new A[shape.images * lines]);
  for_each(shape.images * chunks, kLinesPerChunk * length, [&](int64_t task) {
    const int64_t b = task / chunks, first = task % chunks * kLinesPerChunk;
    A* sums = partial.get() + task * length;
    std::fill(sums, sums + length, A(0));
    for (int64_t line = first; line < std::min(first + kLinesPerChunk, lines); ++line) {
      scalar_grad[b * lines + line] =
          multiply_backward_line(grad_x.line(b, line), grad.line(b, line), x.line(b, line),
                                 vector + b * length, scalar[b * lines + line], sums, length);
    }
  });
  for_each(shape.images, chunks * length, [&](int64_t b) {
    sum_chunks(vector_grad.get() + b * length, partial.get() + b * chunks * length, chunks, length);
  });
  const A* grad_s = shape.channels_last ? scalar_grad.get() : vector_grad.get();
  const A* grad_c = shape.channels_last ? vector_grad.get() : scalar_grad.get();
  return {result, logit_gradient(s, grad_s, spatial), logit_gradient(c, grad_c, channel)};
}

// The four logit tensors and pooled results of the pooling ops, indexed like their shapes.
struct PoolShape {
  int64_t parts, stripes, channels;
  int64_t logit(int64_t b, int64_t p) const { return (b * parts + p) * channels; }
  int64_t pooled(int64_t b, int64_t p, int64_t s) const {
    return ((b * parts + p) * stripes + s) * channels;
  }
};

// One call of pooling: the arrays of its feature map, logits and results.
template <typename T>
struct Pooling {
  using A = acc_t<T>;
  Shape shape;
  PoolShape at;
  bool average;
  Map<const T> x;
  const A* gate;    // C [B, P, C]
  const A* factor;  // S or 1 + S [B, P, h, w]
  T* out;           // [B, P, stripes, C]
  int32_t* places;  // of the maxima, likewise

  const A* factor_of(int64_t b, int64_t p) const {
    return factor + (b * at.parts + p) * shape.pixels;
  }
};

template <typename T>
void pool_plane(const Pooling<T>& call, int64_t b, int64_t channel) {
  using A = acc_t<T>;
  const auto& at = call.at;
  const T* plane = call.x.line(b, channel);
  for (int64_t p = 0; p < at.parts; ++p) {
    const A* f = call.factor_of(b, p);
    const A g = call.gate[at.logit(b, p) + channel];
    for (int64_t i = 0; i < at.stripes; ++i) {
      const Range rows = stripe(call.shape, at.stripes, i);
      const int64_t to = at.pooled(b, p, i) + channel;
      if (call.average) {
        narrow(call.out[to],
               dot(plane + rows.first, f + rows.first, rows.size()) / A(rows.size()) * g);
      } else {
        const int64_t place =
            rows.first + first_maximum(plane + rows.first, f + rows.first, rows.size());
        call.places[to] = static_cast<int32_t>(place);
        narrow(call.out[to], widen(plane[place]) * f[place] * g);
      }
    }
  }
}

// Channels [first, first + width) of image b; `values` and `place` hold P rows of kChannelsPerTile:
// running maxima or sums, and the places of the maxima.
template <typename T>
void pool_pixels(const Pooling<T>& call, int64_t b, int64_t first, int64_t width, acc_t<T>* values,
                 int32_t* place) {
  using A = acc_t<T>;
  const auto& at = call.at;
  const A start = call.average ? A(0) : -std::numeric_limits<A>::infinity();
  for (int64_t i = 0; i < at.stripes; ++i) {
    const Range rows = stripe(call.shape, at.stripes, i);
    std::fill(values, values + at.parts * kChannelsPerTile, start);
    std::fill(place, place + at.parts * kChannelsPerTile, static_cast<int32_t>(rows.first));
    for (int64_t pixel = rows.first; pixel < rows.last; ++pixel) {
      const T* line = call.x.line(b, pixel) + first;
      for (int64_t p = 0; p < at.parts; ++p) {
        const A f = call.factor_of(b, p)[pixel];
        if (call.average) {
          add_scaled(values + p * kChannelsPerTile, line, f, width);
        } else {
          update_maxima(values + p * kChannelsPerTile, place + p * kChannelsPerTile, line, f,
                        static_cast<int32_t>(pixel), width);
        }
      }
    }
    for (int64_t p = 0; p < at.parts; ++p) {
      const int64_t to = at.pooled(b, p, i) + first;
      const A* g = call.gate + at.logit(b, p) + first;
      const A* v = values + p * kChannelsPerTile;
      const A divisor = call.average ? A(rows.size()) : A(1);
      for (int64_t j = 0; j < width; ++j) narrow(call.out[to + j], v[j] / divisor * g[j]);
      if (!call.average) std::copy_n(place + p * kChannelsPerTile, width, call.places + to);
    }
  }
}

template <typename T>
std::tuple<Tensor, Tensor> pool(const Tensor& given, const Tensor& spatial, const Tensor& channel,
                                bool average, bool residual, int64_t stripes) {
  using A = acc_t<T>;
  const Shape shape = shape_of(given);
  const Tensor source = with_lines(given, shape);
  const PoolShape at{spatial.size(1), stripes, shape.channels};
  const Tensor pooled = new_tensor<T>(given, {shape.images, at.parts, stripes, shape.channels});
  const Tensor argmax = average ? new_tensor<int32_t>(given, {0})
                                : torch::stable::new_empty(given, pooled.sizes(), ScalarType::Int);
  const Tensor gates = sigmoid<A>(channel);
  const std::unique_ptr<A[]> factor = factors<A>(sigmoid<A>(spatial), residual);
  const Pooling<T> call{shape,
                        at,
                        average,
                        read<T>(source, shape),
                        data<A>(gates),
                        factor.get(),
                        data_of<T>(pooled),
                        data_of<int32_t>(argmax)};
  if (!shape.channels_last) {
    for_each(shape.images * shape.channels, shape.pixels * at.parts,
             [&](int64_t task) { pool_plane(call, task / shape.channels, task % shape.channels); });
    return {pooled, argmax};
  }
  const int64_t tiles = ceil_div(shape.channels, kChannelsPerTile);
  const int64_t scratch = at.parts * kChannelsPerTile;
  std::unique_ptr<A[]> values(new A[shape.images * tiles * scratch]);
  std::unique_ptr<int32_t[]> places(new int32_t[shape.images * tiles * scratch]);
  for_each(shape.images * tiles, scratch * shape.pixels, [&](int64_t task) {
    const int64_t first = task % tiles * kChannelsPerTile;
    pool_pixels(call, task / tiles, first, std::min(kChannelsPerTile, shape.channels - first),
                values.get() + task * scratch, places.get() + task * scratch);
  });
  return {pooled, argmax};
}

// One call of the gradient of pooling: arrays that both modes use.
template <typename T>
struct PoolGradient {
  using A = acc_t<T>;
  Shape shape;
  PoolShape at;
  Map<const T> x;
  Map<T> grad_x;
  const A* grad;    // of the pooled features [B, P, stripes, C]
  const A* gate;    // C [B, P, C]
  const A* factor;  // S or 1 + S [B, P, h, w]
  A* grad_gate;     // [B, P, C]

  const A* factor_of(int64_t b, int64_t p) const {
    return factor + (b * at.parts + p) * shape.pixels;
  }
};

// Channels [first, first + width) of image b: zeros but for the places of the maxima.
template <typename T>
void maximum_backward(const PoolGradient<T>& call, const int32_t* argmax, int64_t b, int64_t first,
                      int64_t width, acc_t<T>* spatial_sums) {
  using A = acc_t<T>;
  const auto& [shape, at, x, grad_x, grad, gate, factor, grad_gate] = call;
  const auto element = [b, last = shape.channels_last](auto map, int64_t pixel, int64_t channel) {
    return last ? map.line(b, pixel) + channel : map.line(b, channel) + pixel;
  };
  if (shape.channels_last) {
    for (int64_t pixel = 0; pixel < shape.pixels; ++pixel)
      std::memset(static_cast<void*>(grad_x.line(b, pixel) + first), 0, width * sizeof(T));
  } else {
    std::memset(static_cast<void*>(grad_x.line(b, first)), 0, width * shape.pixels * sizeof(T));
  }
  for (int64_t channel = first; channel < first + width; ++channel) {
    for (int64_t p = 0; p < at.parts; ++p) grad_gate[at.logit(b, p) + channel] = 0;
    for (int64_t i = 0; i < at.stripes; ++i) {
      for (int64_t p = 0; p < at.parts; ++p) {
        const int64_t from = at.pooled(b, p, i) + channel;
        const int64_t logit = at.logit(b, p) + channel;
        const int32_t place = argmax[from];
        const A value = widen(*element(x, place, channel));
        const A upstream = grad[from] * gate[logit];
        spatial_sums[p * shape.pixels + place] += upstream * value;
        grad_gate[logit] += grad[from] * (value * call.factor_of(b, p)[place]);
        // Parts that found their maximum at one place are added up before the one rounding.
        bool earlier = false;
        A sum = 0;
        for (int64_t q = 0; q < at.parts; ++q) {
          const int64_t other = at.pooled(b, q, i) + channel;
          if (argmax[other] != place) continue;
          earlier = earlier || q < p;
          sum += grad[other] * gate[at.logit(b, q) + channel] * call.factor_of(b, q)[place];
        }
        if (!earlier) narrow(*element(grad_x, place, channel), sum);
      }
    }
  }
}

template <typename T>
void average_backward_planes(const PoolGradient<T>& call, int64_t b, int64_t first, int64_t width,
                             acc_t<T>* spatial_sums, acc_t<T>* line_sums) {
  using A = acc_t<T>;
  const auto& [shape, at, x, grad_x, grad, gate, factor, grad_gate] = call;
  for (int64_t channel = first; channel < first + width; ++channel) {
    std::fill(line_sums, line_sums + shape.pixels, A(0));
    for (int64_t p = 0; p < at.parts; ++p) {
      const int64_t logit = at.logit(b, p) + channel;
      A sum = 0;
      for (int64_t i = 0; i < at.stripes; ++i) {
        const Range rows = stripe(shape, at.stripes, i);
        const A share = grad[at.pooled(b, p, i) + channel] / A(rows.size());
        sum += share * average_backward_line(
                           line_sums + rows.first, spatial_sums + p * shape.pixels + rows.first,
                           x.line(b, channel) + rows.first, call.factor_of(b, p) + rows.first,
                           share * gate[logit], rows.size());
      }
      grad_gate[logit] = sum;
    }
    narrow_line(grad_x.line(b, channel), line_sums, shape.pixels);
  }
}

// `scratch` holds 2 * P + 1 rows of kChannelsPerTile values.
template <typename T>
void average_backward_pixels(const PoolGradient<T>& call, int64_t b, int64_t first, int64_t width,
                             acc_t<T>* spatial_sums, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const auto& [shape, at, x, grad_x, grad, gate, factor, grad_gate] = call;
  A* line_sums = scratch;
  A* upstream = scratch + kChannelsPerTile;
  A* values = upstream + at.parts * kChannelsPerTile;
  for (int64_t p = 0; p < at.parts; ++p)
    std::fill_n(grad_gate + at.logit(b, p) + first, width, A(0));
  for (int64_t i = 0; i < at.stripes; ++i) {
    const Range rows = stripe(shape, at.stripes, i);
    std::fill(values, values + at.parts * kChannelsPerTile, A(0));
    for (int64_t p = 0; p < at.parts; ++p) {
      const A* g = grad + at.pooled(b, p, i) + first;
      const A* c = gate + at.logit(b, p) + first;
      for (int64_t j = 0; j < width; ++j)
        upstream[p * kChannelsPerTile + j] = g[j] / A(rows.size()) * c[j];
    }
    for (int64_t pixel = rows.first; pixel < rows.last; ++pixel) {
      std::fill(line_sums, line_sums + width, A(0));
      for (int64_t p = 0; p < at.parts; ++p) {
        spatial_sums[p * shape.pixels + pixel] = average_backward_line(
            line_sums, values + p * kChannelsPerTile, x.line(b, pixel) + first,
            upstream + p * kChannelsPerTile, call.factor_of(b, p)[pixel], width);
      }
      narrow_line(grad_x.line(b, pixel) + first, line_sums, width);
    }
    for (int64_t p = 0; p < at.parts; ++p) {
      const A* g = grad + at.pooled(b, p, i) + first;
      A* to = grad_gate + at.logit(b, p) + first;
      for (int64_t j = 0; j < width; ++j)
        to[j] += g[j] / A(rows.size()) * values[p * kChannelsPerTile + j];
    }
  }
}

template <typename T>
Gradients pool_backward(const Tensor& given_grad, const Tensor& given, const Tensor& spatial,
                        const Tensor& channel, const Tensor& places, bool average, bool residual,
                        int64_t stripes) {
  using A = acc_t<T>;
  const Shape shape = shape_of(given);
  const Tensor source = with_lines(given, shape);
  const Tensor grad = widened<A>(given_grad);
  const Tensor result = empty_map(given, shape);
  const Tensor s = sigmoid<A>(spatial);
  const Tensor c = sigmoid<A>(channel);
  const std::unique_ptr<A[]> factor = factors<A>(s, residual);
  const PoolShape at{spatial.size(1), stripes, shape.channels};
  std::unique_ptr<A[]> grad_gate(new A[c.numel()]);
  std::unique_ptr<A[]> grad_factor(new A[s.numel()]);
  const PoolGradient<T> call{
      shape,         at,         read<T>(source, shape), write<T>(result, shape),
      data<A>(grad), data<A>(c), factor.get(),           grad_gate.get()};

  const int64_t width = shape.channels_last ? kChannelsPerTile : kLinesPerChunk;
  const int64_t chunks = ceil_div(shape.channels, width);
  const int64_t map = at.parts * shape.pixels;
  const int64_t scratch_size =
      shape.channels_last ? (2 * at.parts + 1) * kChannelsPerTile : shape.pixels;
  std::unique_ptr<A[]> partial(new A[shape.images * chunks * map]);
  std::unique_ptr<A[]> scratch(new A[average ? shape.images * chunks * scratch_size : 0]);
  for_each(shape.images * chunks, width * shape.pixels, [&](int64_t task) {
    const int64_t b = task / chunks, first = task % chunks * width;
    const int64_t count = std::min(width, shape.channels - first);
    A* sums = partial.get() + task * map;
    std::fill(sums, sums + map, A(0));
    if (!average) {
      maximum_backward(call, data<int32_t>(places), b, first, count, sums);
    } else if (shape.channels_last) {
      average_backward_pixels(call, b, first, count, sums, scratch.get() + task * scratch_size);
    } else {
      average_backward_planes(call, b, first, count, sums, scratch.get() + task * scratch_size);
    }
  });
  for_each(shape.images, chunks * map, [&](int64_t b) {
    sum_chunks(grad_factor.get() + b * map, partial.get() + b * chunks * map, chunks, map);
  });
  return {result, logit_gradient(s, grad_factor.get(), spatial),
          logit_gradient(c, grad_gate.get(), channel)};
}

constexpr std::initializer_list<ScalarType> kFloating = {ScalarType::Float, ScalarType::Double,
                                                         ScalarType::Half, ScalarType::BFloat16};

// Checks a feature map and the logits of `parts` attentions; channel logits have no parts where
// attentions multiply. Copies are made of what does not have the right gaps.
void check_attention(const Arguments& args, const Tensor& x, const Tensor& spatial,
                     const Tensor& channel, bool pools) {
  args.tensor(x, "x", kFloating, {kAny, kAny, kAny, kAny}, Gaps::kAnywhere);
  const int64_t images = x.size(0), channels = x.size(1);
  const int64_t parts = pools && spatial.dim() == 4 ? spatial.size(1) : 1;
  args.tensor(spatial, "spatial", kFloating, {images, parts, x.size(2), x.size(3)},
              Gaps::kAnywhere);
  const Extents of_parts{images, parts, channels}, of_one{images, channels};
  args.tensor(channel, "channel", kFloating, pools ? of_parts : of_one, Gaps::kAnywhere);
}

// The same for pooling over stripes, each of which needs a pixel.
void check_pooling(const Arguments& args, const Tensor& x, const Tensor& spatial,
                   const Tensor& channel, int64_t stripes) {
  check_attention(args, x, spatial, channel, true);
  args.range("stripes", stripes, 1, x.size(2));
  args.require(x.size(3) > 0, "x: expected at least one column to pool, found ",
               shape_text(x.sizes()));
}

// Calls body with a value of the C++ type of the feature map.
template <typename F>
auto dispatch(const Tensor& x, const F& body) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return body(double{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    case ScalarType::Half:
      return body(Half{});
    default:
      return body(float{});
  }
}

Tensor attention_multiply(const Tensor& x, const Tensor& spatial, const Tensor& channel,
                          bool residual) {
  check_attention(Arguments("attention_multiply", x), x, spatial, channel, false);
  return dispatch(x, [&](auto t) { return multiply<decltype(t)>(x, spatial, channel, residual); });
}

Gradients attention_multiply_backward(const Tensor& grad, const Tensor& x, const Tensor& spatial,
                                      const Tensor& channel, bool residual) {
  const Arguments args("attention_multiply_backward", x);
  check_attention(args, x, spatial, channel, false);
  args.tensor(grad, "grad", kFloating, {x.size(0), x.size(1), x.size(2), x.size(3)},
              Gaps::kAnywhere);
  return dispatch(x, [&](auto t) {
    return multiply_backward<decltype(t)>(grad, x, spatial, channel, residual);
  });
}

std::tuple<Tensor, Tensor> attention_pool(const Tensor& x, const Tensor& spatial,
                                          const Tensor& channel, bool average, bool residual,
                                          int64_t stripes) {
  check_pooling(Arguments("attention_pool", x), x, spatial, channel, stripes);
  return dispatch(x, [&](auto t) {
    return pool<decltype(t)>(x, spatial, channel, average, residual, stripes);
  });
}

Gradients attention_pool_backward(const Tensor& grad, const Tensor& x, const Tensor& spatial,
                                  const Tensor& channel, const Tensor& argmax, bool average,
                                  bool residual, int64_t stripes) {
  const Arguments args("attention_pool_backward", x);
  check_pooling(args, x, spatial, channel, stripes);
  const Extents pooled{x.size(0), spatial.size(1), stripes, x.size(1)};
  args.tensor(grad, "grad", kFloating, pooled, Gaps::kAnywhere);
  const Tensor places = torch::stable::contiguous(argmax);
  if (!average) {
    const auto* values = args.input<int32_t>(places, "argmax", pooled);
    args.indices(values, "argmax", places.numel(), 0, x.size(2) * x.size(3), "the feature map");
  }
  return dispatch(x, [&](auto t) {
    return pool_backward<decltype(t)>(grad, x, spatial, channel, places, average, residual,
                                      stripes);
  });
}

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("attention_multiply", TORCH_BOX(&mmga::attention_multiply));
  m.impl("attention_multiply_backward", TORCH_BOX(&mmga::attention_multiply_backward));
  m.impl("attention_pool", TORCH_BOX(&mmga::attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&mmga::attention_pool_backward));
}
