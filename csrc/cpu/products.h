// Inner products and squared distances of pairs of rows, the same on every machine.
//
// Rows of float32 in float64: eight interleaved accumulators and a fixed tree (`interleaved_sum` of
// mmga/ops/reference). Products of float32 are exact in float64; a difference and its square are
// rounded once each, because multiplications and additions are compiled apart (-ffp-contract=off).
// Rows of 16-bit integers: exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"

namespace mmga {
namespace {

constexpr int64_t kAccumulators = 8;
// Rows that are compared with one at once: their sums are independent, which hides the latency of
// additions.
constexpr int64_t kTogether = 4;

// As many float64 as a register of `kBytes` has room for: compilers keep no sums of longer vectors
// in registers.
template <int64_t kBytes>
struct Register;
template <>
struct Register<64> {
  typedef double Doubles __attribute__((vector_size(64)));
};
template <>
struct Register<32> {
  typedef double Doubles __attribute__((vector_size(32)));
};
template <>
struct Register<16> {
  typedef double Doubles __attribute__((vector_size(16)));
};

// What is summed over the elements of two rows.
struct Product {
  template <typename V>
  static MMGA_INLINE void add(V& sum, const V& x, const V& y) {
    sum += x * y;
  }
};
struct SquaredDifference {
  template <typename V>
  static MMGA_INLINE void add(V& sum, const V& x, const V& y) {
    sum += (x - y) * (x - y);
  }
};

// The accumulators of a pair of rows, in registers of `kBytes`.
template <int64_t kBytes>
struct Accumulators {
  typedef typename Register<kBytes>::Doubles Doubles;
  static constexpr int kLanes = kBytes / sizeof(double);

  Doubles sums[kAccumulators / kLanes] = {};

  // Adds the terms of eight values.
  template <typename Term>
  MMGA_INLINE void add(const double* x, const float* y) {
#pragma GCC unroll 4
    for (int part = 0; part < kAccumulators / kLanes; ++part) {
      Doubles own, other;
      std::memcpy(&own, x + part * kLanes, sizeof own);
#pragma GCC unroll 8
      for (int lane = 0; lane < kLanes; ++lane) other[lane] = y[part * kLanes + lane];
      Term::add(sums[part], own, other);
    }
  }

  MMGA_INLINE double total() const {
    double s[kAccumulators];
    std::memcpy(s, sums, sizeof s);
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }
};

template <typename Term, int kRows, int64_t kBytes>
MMGA_INLINE void sum_terms_by(const double* x, const float* const* y, int64_t width, double* sums) {
  Accumulators<kBytes> of_row[kRows];
  const int64_t whole = width / kAccumulators * kAccumulators;
  for (int64_t i = 0; i < whole; i += kAccumulators) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) of_row[r].template add<Term>(x + i, y[r] + i);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if (whole < width) {
      float rest[kAccumulators] = {};
      std::memcpy(rest, y[r] + whole, (width - whole) * sizeof(float));
      of_row[r].template add<Term>(x + whole, rest);
    }
    sums[r] = of_row[r].total();
  }
}

#if MMGA_X86_CLONES
template <typename Term, int kRows>
__attribute__((target("arch=x86-64-v4"))) void sum_terms_512(const double* x, const float* const* y,
                                                             int64_t width, double* sums) {
  sum_terms_by<Term, kRows, 64>(x, y, width, sums);
}

template <typename Term, int kRows>
__attribute__((target("arch=x86-64-v3"))) void sum_terms_256(const double* x, const float* const* y,
                                                             int64_t width, double* sums) {
  sum_terms_by<Term, kRows, 32>(x, y, width, sums);
}
#endif

template <typename Term, int kRows>
void sum_terms_128(const double* x, const float* const* y, int64_t width, double* sums) {
  sum_terms_by<Term, kRows, 16>(x, y, width, sums);
}

typedef void (*SumTerms)(const double* x, const float* const* y, int64_t width, double* sums);

// Returns the function for this processor's registers.
template <typename Term, int kRows>
SumTerms find_sum_terms() {
#if MMGA_X86_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return sum_terms_512<Term, kRows>;
  if (__builtin_cpu_supports("x86-64-v3")) return sum_terms_256<Term, kRows>;
#endif
  return sum_terms_128<Term, kRows>;
}

// Sums the terms of a row, which ends with zeros at a multiple of eight values, and `kRows` others.
template <typename Term, int kRows>
void sum_terms(const double* x, const float* const* y, int64_t width, double* sums) {
  static const SumTerms found = find_sum_terms<Term, kRows>();
  found(x, y, width, sums);
}

// The lengths of integer rows are below 2^15.5: no partial sum exceeds 32 bits, by Cauchy's
// inequality.
template <typename Term, int kRows>
MMGA_VECTOR_CLONES void sum_terms(const int16_t* x, const int16_t* const* y, int64_t width,
                                  double* sums) {
  static_assert(std::is_same_v<Term, Product>);
  const int16_t* rows[kRows];
  int32_t products[kRows] = {};
  for (int r = 0; r < kRows; ++r) rows[r] = y[r];
  for (int64_t i = 0; i < width; ++i) {
    for (int r = 0; r < kRows; ++r) products[r] += int32_t{x[i]} * int32_t{rows[r][i]};
  }
  for (int r = 0; r < kRows; ++r) sums[r] = products[r];
}

MMGA_VECTOR_CLONES inline void widen(const float* row, int64_t width, double* to) {
  for (int64_t i = 0; i < width; ++i) to[i] = row[i];
}

// A row that is compared with many others, in the type of the arithmetic.
template <typename T>
class CommonRow {
 public:
  explicit CommonRow(int64_t) {}
  void set(const T* row) { row_ = row; }
  const T* get() const { return row_; }

 private:
  const T* row_ = nullptr;
};

template <>
class CommonRow<float> {
 public:
  explicit CommonRow(int64_t width)
      : width_(width), values_((width + kAccumulators - 1) / kAccumulators * kAccumulators) {}

  void set(const float* row) {
    if (row != row_) renew(row);
  }
  // Sets a row whose values may have changed.
  void renew(const float* row) {
    row_ = row;
    widen(row, width_, values_.data());
  }
  const double* get() const { return values_.data(); }

 private:
  int64_t width_;
  const float* row_ = nullptr;
  std::vector<double> values_;
};

// Prefetches the beginning of a row, from which the processor goes on by itself.
template <typename T>
MMGA_INLINE void prefetch(const T* row, int64_t width) {
#if defined(__GNUC__)
  constexpr int64_t kLine = 64, kLines = 16;
  const auto* bytes = reinterpret_cast<const char*>(row);
  const int64_t count = std::min<int64_t>(width * sizeof(T), kLines * kLine);
  for (int64_t byte = 0; byte < count; byte += kLine) __builtin_prefetch(bytes + byte);
#endif
}

// Calls use(p, sum) for the pairs `begin` to `end`, where pair p is of the rows row(p) of x and
// column(p) of y. Neighbouring pairs of one row are summed together.
template <typename Term, typename T, typename Row, typename Column, typename Use>
void sum_pairs(const T* x, const T* y, int64_t width, int64_t begin, int64_t end, const Row& row,
               const Column& column, const Use& use) {
  CommonRow<T> one(width);
  for (int64_t p = begin; p < end;) {
    const T* others[kTogether];
    double sums[kTogether];
    int64_t several = 0;
    for (; several < kTogether && p + several < end && row(p + several) == row(p); ++several) {
      others[several] = y + column(p + several) * width;
    }
    for (int64_t q = p + several; q < std::min(end, p + several + kTogether); ++q) {
      prefetch(y + column(q) * width, width);
    }
    one.set(x + row(p) * width);
    if (several == kTogether) {
      sum_terms<Term, kTogether>(one.get(), others, width, sums);
    } else {
      for (int64_t s = 0; s < several; ++s) {
        sum_terms<Term, 1>(one.get(), others + s, width, sums + s);
      }
    }
    for (int64_t s = 0; s < several; ++s) use(p + s, sums[s]);
    p += several;
  }
}

}  // namespace
}  // namespace mmga
