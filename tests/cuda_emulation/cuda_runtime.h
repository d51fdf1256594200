// CUDA for machines without a GPU: the kernels' own source, compiled by a C++ compiler.
//
// This header takes the place of CUDA's. Blocks run one after the other and every thread of a block
// is a fiber, which runs until it waits for others; in which order threads and blocks run is set by
// a seed, so that code whose result depends on it shows. Shared memory is checked at every access:
// bounds, and two threads at one place without a barrier between them (runtime.cpp). Only what the
// kernels use is here, and warps are always whole.
#pragma once

#include <math.h>
#include <string.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

// Where the running thread stands; the scheduler sets these.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

// Runs `body` as every thread of every block.
void run(dim3 blocks, dim3 threads, const std::function<void()>& body);

// Ends the launch with an error.
[[noreturn]] void fail(const char* what, int line);

void block_barrier(int line);

// Waits for the other lanes of the warp and returns what all 32 brought, 16 bytes each, valid until
// this lane's next call.
constexpr int kLanes = 32;
struct alignas(16) Brought {
  unsigned char bytes[16];
};
const Brought* exchange(const void* value, size_t bytes, unsigned mask, int line);

// May let other threads run first.
void hesitate();

// What happened last to a place in shared memory.
struct Access {
  unsigned block_epoch = 0;
  unsigned warp_epoch = 0;
  int warp = -1;    // -1: several
  int thread = -1;  // -1: several
};
struct Record {
  Access written, read, added;  // `added`: by atomics, which do not race with each other
};
void note(Record& record, char kind, int line);

// One array of shared memory of the running block: the first thread that asks makes it, poisoned.
void* shared_array(const void* key, size_t bytes, size_t count, Record** records, int line);

template <typename T>
class Cell;

// A pointer into shared memory.
template <typename T>
class Shared {
 public:
  Shared(T* values, Record* records, int64_t count, int line)
      : values_(values), records_(records), count_(count), line_(line) {}
  Cell<T> operator[](int64_t i) const {
    if (i < 0 || i >= count_) fail("shared memory is left", line_);
    return Cell<T>(values_ + i, records_ + i, line_);
  }

 private:
  T* values_;
  Record* records_;
  int64_t count_;
  int line_;
};

template <typename T>
struct Place {
  T* value;
  Record* record;
  int line;
};

// One value of shared memory.
template <typename T>
class Cell {
 public:
  Cell(T* value, Record* record, int line) : place_{value, record, line} {}
  Cell(const Cell&) = default;
  operator T() const {
    note(*place_.record, 'r', place_.line);
    return *place_.value;
  }
  const Cell& operator=(T value) const {
    note(*place_.record, 'w', place_.line);
    *place_.value = value;
    return *this;
  }
  const Cell& operator=(const Cell& other) const { return *this = static_cast<T>(other); }
  const Cell& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }
  Place<T> operator&() const { return place_; }

 private:
  Place<T> place_;
};

template <typename T>
Shared<T> shared(const void* key, int64_t count, int line) {
  Record* records = nullptr;
  void* values = shared_array(key, sizeof(T), count, &records, line);
  return Shared<T>(static_cast<T*>(values), records, count, line);
}

template <typename T>
T brought(const Brought& one) {
  T value;
  memcpy(&value, one.bytes, sizeof(T));
  return value;
}

}  // namespace emulation

// The kernels' macro of the same name is a plain `__shared__` array.
#define MMGA_SHARED(T, name, count) \
  static char name##_key;           \
  const auto name = emulation::shared<T>(&name##_key, count, __LINE__)

#define __syncthreads() emulation::block_barrier(__LINE__)
#define __syncwarp() emulation::exchange("", 1, ~0u, __LINE__)
#define __ballot_sync(mask, predicate) emulation::ballot(mask, predicate, __LINE__)
#define __any_sync(mask, predicate) (emulation::ballot(mask, predicate, __LINE__) != 0)
#define __all_sync(mask, predicate) (emulation::ballot(mask, predicate, __LINE__) == ~0u)
#define __shfl_sync(mask, value, lane) emulation::from_lane(mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, with) \
  emulation::from_lane(mask, value, static_cast<int>(threadIdx.x % 32) ^ (with), __LINE__)
#define __shfl_up_sync(mask, value, delta) emulation::from_below(mask, value, delta, __LINE__)

namespace emulation {

inline unsigned ballot(unsigned mask, bool predicate, int line) {
  const Brought* all = exchange(&predicate, sizeof predicate, mask, line);
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    bits |= static_cast<unsigned>(brought<bool>(all[lane])) << lane;
  }
  return bits;
}

template <typename T>
T from_lane(unsigned mask, T value, int lane, int line) {
  return brought<T>(exchange(&value, sizeof value, mask, line)[lane & (kLanes - 1)]);
}

template <typename T>
T from_below(unsigned mask, T value, int delta, int line) {
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  const Brought* all = exchange(&value, sizeof value, mask, line);
  return lane < delta ? value : brought<T>(all[lane - delta]);
}

template <typename T, typename Change>
T change(T* place, const Change& to) {
  hesitate();
  const T before = *place;
  *place = to(before);
  return before;
}
template <typename T, typename Change>
T change(Place<T> place, const Change& to) {
  hesitate();
  note(*place.record, 'a', place.line);
  const T before = *place.value;
  *place.value = to(before);
  return before;
}

}  // namespace emulation

template <typename P, typename T>
auto atomicAdd(P place, T value) {
  return emulation::change(place, [&](auto before) { return before + value; });
}
template <typename P, typename T>
auto atomicOr(P place, T value) {
  return emulation::change(place, [&](auto before) { return before | value; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline long long __double_as_longlong(double x) {
  long long bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> given(static_cast<Parameters>(arguments)...);
  emulation::run(config->gridDim, config->blockDim, [&] { std::apply(kernel, given); });
  return cudaSuccess;
}
