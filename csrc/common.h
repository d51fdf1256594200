// What every CPU and CUDA source shares: accumulation types and vector code chosen at run time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

// Compiles a function for several instruction sets and picks one when the library is loaded. Only
// GCC on x86-64 GNU/Linux does this reliably; elsewhere the plain loop is what there is.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__)
#define MMGA_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MMGA_VECTOR_CLONES
#endif

#define MMGA_INLINE __attribute__((always_inline)) inline

namespace mmga {

// Entries that one thread should have before another is worth waking.
constexpr int64_t kGrain = 1 << 15;

// The type in which values of type T are accumulated.
template <typename T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename accumulator<T>::type;

}  // namespace mmga
