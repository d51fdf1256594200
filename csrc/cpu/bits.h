// Sixty-four comparisons as the bits of a word.
#pragma once

#include <cstdint>
#include <cstring>

namespace mmga {

// Bit t of the result is byte t, which is 0 or 1. Vector code makes bytes of comparisons on any
// instruction set; a multiplication then gathers eight of them.
__attribute__((always_inline)) inline uint64_t bits_of_bytes(const uint8_t* bytes) {
  uint64_t bits = 0;
  for (int t = 0; t < 8; ++t) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * t, sizeof eight);
    bits |= (eight * 0x0102040810204080 >> 56) << (8 * t);
  }
  return bits;
}

}  // namespace mmga
