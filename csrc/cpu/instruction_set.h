// What the processor can do, and which clone of a MMGA_VECTOR_CLONES function runs here. No torch
// header: module.cpp includes it.
#pragma once

namespace mmga {

inline const char* instruction_set() {
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64";
#else
  return "as compiled";
#endif
}

// Whether products of 8-bit integers have instructions of their own, without which they are no
// faster than those of float32.
inline bool byte_instructions() {
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni") || __builtin_cpu_supports("avxvnni");
#else
  return false;
#endif
}

}  // namespace mmga
