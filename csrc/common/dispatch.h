// Vector code that is chosen at run time, and when to share work among threads. No torch header:
// module.cpp includes this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "common/scalar.h"

// Compiles a function for several instruction sets and picks one when the library is loaded. Only
// GCC on x86-64 GNU/Linux does this reliably; elsewhere the plain loop is compiled once.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define MMGA_X86_CLONES 1
#define MMGA_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MMGA_X86_CLONES 0
#define MMGA_VECTOR_CLONES
#endif

namespace mmga {

// Returns the instruction set whose MMGA_VECTOR_CLONES run on this machine.
inline const char* instruction_set() {
#if MMGA_X86_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64";
#else
  return "as compiled";
#endif
}

// Instructions for products of 8-bit integers (VNNI), or of such and of 16 bits (AVX2), without
// which they are no faster than those of float32.
enum class Int8Instructions { kNone, kAvx2, kAvxVnni, kAvx512Vnni };

// Returns whether AVX2 multiplies such integers faster than float32: Zen 3 and Skylake without
// AVX-512 have two units for them, processors before these one.
inline bool multiplies_integers_fast() {
#if MMGA_X86_CLONES && __GNUC__ >= 11
  return __builtin_cpu_is("znver3") || __builtin_cpu_is("skylake");
#else
  return false;
#endif
}

// Returns the processor's best; MMGA_INT8 = none, avx2, avx or avx512 asks for others that it has.
inline Int8Instructions int8_instructions() {
#if MMGA_X86_CLONES
  __builtin_cpu_init();
  const char* given = std::getenv("MMGA_INT8");
  const std::string_view wanted = given != nullptr ? given : "";
  if (wanted == "none") return Int8Instructions::kNone;
  if (wanted != "avx2") {
    if (__builtin_cpu_supports("avx512vnni") && wanted != "avx")
      return Int8Instructions::kAvx512Vnni;
    if (__builtin_cpu_supports("avxvnni")) return Int8Instructions::kAvxVnni;
  }
  if (__builtin_cpu_supports("avx2") && (wanted == "avx2" || multiplies_integers_fast())) {
    return Int8Instructions::kAvx2;
  }
#endif
  return Int8Instructions::kNone;
}

// Returns the name of these instructions, empty if there are none.
inline const char* int8_instructions_name() {
  switch (int8_instructions()) {
    case Int8Instructions::kAvx512Vnni:
      return "AVX-512 VNNI";
    case Int8Instructions::kAvxVnni:
      return "AVX-VNNI";
    case Int8Instructions::kAvx2:
      return "AVX2";
    case Int8Instructions::kNone:
      break;
  }
  return "";
}

// Bytes of a vector that fits a register: comparisons of longer ones are compiled lane by lane.
#if defined(__x86_64__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

// Entries below which another thread costs more than it saves.
constexpr int64_t kGrain = 1 << 15;

// Rows that a thread should have at least, given the entries of a row.
inline int64_t rows_per_thread(int64_t width, int64_t entries = kGrain) {
  return std::max<int64_t>(1, entries / std::max<int64_t>(1, width));
}

// Returns 64 comparisons as the bits of a word: bit t is byte t, which is 0 or 1. Vector code makes
// bytes of comparisons on any instruction set; a multiplication then gathers eight of them.
MMGA_INLINE uint64_t bits_of_bytes(const uint8_t* bytes) {
  uint64_t bits = 0;
  for (int t = 0; t < 8; ++t) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * t, sizeof eight);
    bits |= (eight * 0x0102040810204080 >> 56) << (8 * t);
  }
  return bits;
}

}  // namespace mmga
