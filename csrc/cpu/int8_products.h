// Inner products of rows of 8-bit integers, exact in 32 bits, by the processor's instructions for
// them (VNNI) or by those of AVX2 where they are faster than products of float32.
//
// An instruction of VNNI adds four products of unsigned and signed bytes to each 32-bit lane.
// Columns are packed in panels of 64, four bytes of a column next to each other and made unsigned
// by adding an offset; a part of a panel stays in the L1 cache while blocks of six rows pass by.
// The offset times the sum of a row is taken off in the end. Sums wrap around at 2^32, and no
// product leaves 32 bits: D <= 2^17 is exact.
//
// AVX2 adds two products of bytes in 16 bits, where larger sums are cut off. If rows and columns
// are of at most 90, that cannot be, and if they are of at most 63, two such sums may be added
// before they are widened: `ops.certified.int8_most` rounds rows so. Where the largest numbers of
// both allow neither, 16-bit integers are multiplied.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "common/dispatch.h"
#include "cpu/shares.h"

#if MMGA_X86_CLONES
#include <immintrin.h>
#endif

namespace mmga {
namespace {

constexpr int64_t kPanel = 64;             // columns of a panel
constexpr int64_t kBlock = 6;              // rows that are multiplied together
constexpr int64_t kQuad = 4;               // bytes that an instruction adds up in a lane
constexpr int64_t kQuads = 128;            // quads of a row that are taken before the next rows
constexpr int64_t kRowChunk = 48;          // rows of a strip of products; a multiple of kBlock
constexpr int64_t kLine = 64;              // bytes of a cache line
constexpr int64_t kWidestBytes = 1 << 17;  // up to which a product fits 32 bits

// Memory that begins at a cache line, not initialised.
template <typename T>
class Lines {
 public:
  explicit Lines(int64_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kLine}))) {}
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kLine}); }
  };
  std::unique_ptr<T, Free> data_;
};

// Six rows, by their first byte.
struct RowBlock {
  const int8_t* rows[kBlock];
};

// Adds products of `quads` quads of six rows and of a panel to `sums` [6, 64], or sets these.
typedef void (*MultiplyBlock)(const RowBlock& x, const uint8_t* panel, int64_t quads, bool first,
                              int32_t* sums);

inline void multiply_block_plain(const RowBlock& x, const uint8_t* panel, int64_t quads, bool first,
                                 int32_t* sums) {
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t c = 0; c < kPanel; ++c) {
      uint32_t sum = first ? 0 : static_cast<uint32_t>(sums[r * kPanel + c]);  // wraps around
      for (int64_t q = 0; q < quads; ++q) {
        const uint8_t* y = panel + (q * kPanel + c) * kQuad;
        for (int64_t b = 0; b < kQuad; ++b) {
          sum += static_cast<uint32_t>(x.rows[r][q * kQuad + b] * y[b]);
        }
      }
      sums[r * kPanel + c] = static_cast<int32_t>(sum);
    }
  }
}

#if MMGA_X86_CLONES
// The instructions are written out: the compiler would move every sum to another register.
__attribute__((target("avx512f"))) inline void multiply_block_512(const RowBlock& x,
                                                                  const uint8_t* panel,
                                                                  int64_t quads, bool first,
                                                                  int32_t* sums) {
  constexpr int kVectors = 4;
  __m512i sum[kBlock][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kBlock; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int32_t* from = sums + r * kPanel + 16 * v;
      sum[r][v] = first ? _mm512_setzero_si512() : _mm512_load_si512(from);
    }
  }
  for (int64_t q = 0; q < quads; ++q) {
    __m512i y[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) y[v] = _mm512_load_si512(panel + (q * kVectors + v) * kLine);
#pragma GCC unroll 6
    for (int r = 0; r < kBlock; ++r) {
      int32_t quad;
      std::memcpy(&quad, x.rows[r] + q * kQuad, sizeof quad);
      const __m512i row = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum[r][v]) : "v"(y[v]), "v"(row));
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kBlock; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_store_si512(sums + r * kPanel + 16 * v, sum[r][v]);
  }
}

constexpr int kQuarterVectors = 2, kQuarter = 16;  // vectors and columns of a quarter of a panel

// Reads the sums of six rows and of a quarter of a panel, or sets them to 0.
__attribute__((target("avx2"))) inline void read_quarter(const int32_t* sums, bool first,
                                                         __m256i (&sum)[kBlock][kQuarterVectors]) {
#pragma GCC unroll 6
  for (int r = 0; r < kBlock; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kQuarterVectors; ++v) {
      const auto* from = reinterpret_cast<const __m256i*>(sums + r * kPanel + 8 * v);
      sum[r][v] = first ? _mm256_setzero_si256() : _mm256_load_si256(from);
    }
  }
}

__attribute__((target("avx2"))) inline void write_quarter(
    const __m256i (&sum)[kBlock][kQuarterVectors], int32_t* sums) {
#pragma GCC unroll 6
  for (int r = 0; r < kBlock; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kQuarterVectors; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kPanel + 8 * v), sum[r][v]);
    }
  }
}

__attribute__((target("avx2"))) inline void multiply_block_256(const RowBlock& x,
                                                               const uint8_t* panel, int64_t quads,
                                                               bool first, int32_t* sums) {
  for (int64_t left = 0; left < kPanel; left += kQuarter) {
    __m256i sum[kBlock][kQuarterVectors];
    read_quarter(sums + left, first, sum);
    for (int64_t q = 0; q < quads; ++q) {
      __m256i y[kQuarterVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kQuarterVectors; ++v) {
        std::memcpy(&y[v], panel + (q * kPanel + left + 8 * v) * kQuad, sizeof y[v]);
      }
#pragma GCC unroll 6
      for (int r = 0; r < kBlock; ++r) {
        int32_t quad;
        std::memcpy(&quad, x.rows[r] + q * kQuad, sizeof quad);
        const __m256i row = _mm256_set1_epi32(quad);
#pragma GCC unroll 2
        for (int v = 0; v < kQuarterVectors; ++v) {
          asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum[r][v]) : "x"(y[v]), "x"(row));
        }
      }
    }
    write_quarter(sum, sums + left);
  }
}

// Multiplies 16-bit integers in place of bytes: the even bytes of all quads of a vector, then the
// odd ones. Unlike products of bytes that are added up in 16 bits, none is cut off.
__attribute__((target("avx2"))) inline void multiply_block_wide(const RowBlock& x,
                                                                const uint8_t* panel, int64_t quads,
                                                                bool first, int32_t* sums) {
  constexpr int64_t kAtOnce = 8;                    // quads of a vector
  alignas(kLine) int32_t pairs[kBlock][2][kQuads];  // even and odd bytes of a quad
  for (int64_t r = 0; r < kBlock; ++r) {
    for (int64_t q = 0; q < quads; q += kAtOnce) {
      const int8_t* from = x.rows[r] + q * kQuad;
      __m256i bytes = _mm256_setzero_si256();
      if (quads - q >= kAtOnce) {
        bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      } else {
        std::memcpy(&bytes, from, (quads - q) * kQuad);
      }
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(&pairs[r][0][q]), even);
      _mm256_store_si256(reinterpret_cast<__m256i*>(&pairs[r][1][q]), _mm256_srai_epi16(bytes, 8));
    }
  }
  const __m256i low = _mm256_set1_epi16(0xff);
  for (int64_t left = 0; left < kPanel; left += kQuarter) {
    __m256i sum[kBlock][kQuarterVectors];
    read_quarter(sums + left, first, sum);
    for (int64_t q = 0; q < quads; ++q) {
      const auto* from = reinterpret_cast<const __m256i*>(panel + (q * kPanel + left) * kQuad);
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        __m256i y[kQuarterVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kQuarterVectors; ++v) {
          const __m256i bytes = _mm256_load_si256(from + v);
          y[v] = odd ? _mm256_srli_epi16(bytes, 8) : _mm256_and_si256(bytes, low);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kBlock; ++r) {
          const __m256i row = _mm256_set1_epi32(pairs[r][odd][q]);
#pragma GCC unroll 2
          for (int v = 0; v < kQuarterVectors; ++v) {
            __m256i product;
            asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
                : "+x"(sum[r][v]), "=&x"(product)
                : "x"(y[v]), "x"(row));
          }
        }
      }
    }
    write_quarter(sum, sums + left);
  }
}

// Adds the products of `kTaken` quads of six rows and of a quarter of a panel. A sum of 2 kTaken
// products must fit 16 bits.
template <int kTaken>
__attribute__((target("avx2"))) MMGA_INLINE void add_quads(
    const RowBlock& x, const uint8_t* panel, int64_t quad,
    __m256i (&sum)[kBlock][kQuarterVectors]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
  for (int r = 0; r < kBlock; ++r) {
    __m256i pairs[kQuarterVectors];
#pragma GCC unroll 2
    for (int taken = 0; taken < kTaken; ++taken) {
      int32_t bytes;
      std::memcpy(&bytes, x.rows[r] + (quad + taken) * kQuad, sizeof bytes);
      const __m256i row = _mm256_set1_epi32(bytes);
#pragma GCC unroll 2
      for (int v = 0; v < kQuarterVectors; ++v) {
        const uint8_t* y = panel + ((quad + taken) * kPanel + 8 * v) * kQuad;
        const __m256i products =
            _mm256_maddubs_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(y)), row);
        pairs[v] = taken == 0 ? products : _mm256_add_epi16(pairs[v], products);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kQuarterVectors; ++v) {
      sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs[v], ones));
    }
  }
}

// Multiplies bytes of which `kTaken` quads are added up in 16 bits.
template <int kTaken>
__attribute__((target("avx2"))) inline void multiply_block_narrow(const RowBlock& x,
                                                                  const uint8_t* panel,
                                                                  int64_t quads, bool first,
                                                                  int32_t* sums) {
  for (int64_t left = 0; left < kPanel; left += kQuarter) {
    __m256i sum[kBlock][kQuarterVectors];
    read_quarter(sums + left, first, sum);
    int64_t q = 0;
    for (; q + kTaken <= quads; q += kTaken) add_quads<kTaken>(x, panel + left * kQuad, q, sum);
    for (; q < quads; ++q) add_quads<1>(x, panel + left * kQuad, q, sum);
    write_quarter(sum, sums + left);
  }
}
#endif

constexpr int64_t kOffset = 128;  // makes any byte unsigned

// Returns the function for rows of at most `most` and columns to which `offset` is added.
inline MultiplyBlock multiply_block(Int8Instructions found, int64_t most, int64_t offset) {
#if MMGA_X86_CLONES
  if (found == Int8Instructions::kAvx512Vnni) return multiply_block_512;
  if (found == Int8Instructions::kAvxVnni) return multiply_block_256;
  if (found == Int8Instructions::kAvx2) {
    const int64_t pair = 2 * most * (2 * offset);
    constexpr int64_t kLargest = std::numeric_limits<int16_t>::max();
    if (2 * pair <= kLargest) return multiply_block_narrow<2>;
    return pair <= kLargest ? multiply_block_narrow<1> : multiply_block_wide;
  }
#endif
  (void)found, (void)most, (void)offset;
  return multiply_block_plain;
}

// Returns the largest absolute value.
MMGA_VECTOR_CLONES inline int64_t largest_byte(const int8_t* x, int64_t count) {
  int8_t least = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  return std::max(-int64_t{least}, int64_t{most});
}

// The columns of a tile, [width, depth], packed in panels, each by the thread that needs it first.
class PackedColumns {
 public:
  PackedColumns(const int8_t* y, int64_t width, int64_t depth)
      : y_(y),
        width_(width),
        depth_(depth),
        quads_((depth + kQuad - 1) / kQuad),
        instructions_(int8_instructions()),
        panels_(panels() * quads_ * kQuad * kPanel),
        state_(panels()) {
    if (instructions_ == Int8Instructions::kAvx2) offset_ = largest_byte(y, width * depth);
  }

  int64_t width() const { return width_; }
  int64_t depth() const { return depth_; }
  int64_t quads() const { return quads_; }
  int64_t offset() const { return offset_; }  // that makes columns unsigned
  // How many quads of a row are taken before the next rows; processors without VNNI have small
  // caches.
  int64_t quads_at_once() const {
    return instructions_ == Int8Instructions::kAvx2 ? kQuads / 2 : kQuads;
  }
  int64_t panels() const { return (width_ + kPanel - 1) / kPanel; }
  // Returns the function that multiplies rows, so many bytes in all, by the columns.
  MultiplyBlock multiply_by(const int8_t* rows, int64_t bytes) const {
    const bool any = instructions_ != Int8Instructions::kAvx2;
    return multiply_block(instructions_, any ? kOffset : largest_byte(rows, bytes), offset_);
  }
  const uint8_t* at(int64_t panel, int64_t quad) const {
    return panels_.get() + (panel * quads_ + quad) * kPanel * kQuad;
  }

  // Makes sure that a panel is packed. While another thread does it, packs the next ones.
  void prepare(int64_t panel) const {
    int64_t mine = panel;
    while (state_[panel].load(std::memory_order_acquire) != kPacked) {
      uint8_t free = kFree;
      if (mine == panels()) {
        std::this_thread::yield();
      } else if (state_[mine].compare_exchange_strong(free, kTaken)) {
        fill(mine);
        state_[mine].store(kPacked, std::memory_order_release);
      } else {
        ++mine;
      }
    }
  }

 private:
  static constexpr uint8_t kFree = 0, kTaken = 1, kPacked = 2;

  // Packs one of the panels. Bytes that no row has are 0, so that what they are multiplied with
  // does not matter.
  void fill(int64_t panel) const {
    constexpr int64_t kAtOnce = kLine / kQuad;  // quads of a cache line of a column
    const auto less = static_cast<uint32_t>(kOffset - offset_);
    const int64_t first = panel * kPanel, count = std::min(kPanel, width_ - first);
    uint8_t* to = panels_.get() + panel * quads_ * kPanel * kQuad;
    if (count < kPanel || depth_ % kQuad != 0) std::fill(to, to + quads_ * kPanel * kQuad, 0);
    for (int64_t begin = 0; begin < quads_; begin += kAtOnce) {
      const int64_t end = std::min(quads_, begin + kAtOnce);
      for (int64_t c = 0; c < count; ++c) {
        const int8_t* from = y_ + (first + c) * depth_;
        for (int64_t q = begin; q < end; ++q) {
          uint8_t* quad = to + (q * kPanel + c) * kQuad;
          const int64_t bytes = std::min(kQuad, depth_ - q * kQuad);
          if (bytes == kQuad) {
            uint32_t four;
            std::memcpy(&four, from + q * kQuad, kQuad);
            four = (four ^ 0x80808080) - less * 0x01010101;  // no byte borrows
            std::memcpy(quad, &four, kQuad);
          } else {
            for (int64_t b = 0; b < bytes; ++b)
              quad[b] = static_cast<uint8_t>(from[q * kQuad + b] + offset_);
          }
        }
      }
    }
  }

  const int8_t* y_;
  int64_t width_, depth_, quads_, offset_ = kOffset;
  Int8Instructions instructions_;
  Lines<uint8_t> panels_;
  mutable std::vector<std::atomic<uint8_t>> state_;  // of each panel
};

MMGA_VECTOR_CLONES inline int32_t sum_of_bytes(const int8_t* row, int64_t depth) {
  int32_t sum = 0;
  for (int64_t i = 0; i < depth; ++i) sum += row[i];
  return sum;
}

// Writes the first `width` columns of `count` rows of sums [count, 64] as products times units.
MMGA_VECTOR_CLONES inline void scale_sums(const int32_t* sums, const uint32_t* excess,
                                          const float* row_unit, const float* column_unit,
                                          int64_t count, int64_t width, float* to, int64_t stride) {
  for (int64_t r = 0; r < count; ++r) {
    const uint32_t more = excess[r];
    const float unit = row_unit[r];
    float* row = to + r * stride;
    for (int64_t c = 0; c < width; ++c) {
      const auto product = static_cast<int32_t>(static_cast<uint32_t>(sums[r * kPanel + c]) - more);
      row[c] = (static_cast<float>(product) * unit) * column_unit[c];
    }
  }
}

// Computes products of at most kRowChunk rows with packed columns; one for each thread.
class StripOfProducts {
 public:
  explicit StripOfProducts(const PackedColumns& columns)
      : columns_(columns), sums_(kRowChunk * kPanel), ends_(kRowChunk * kQuad) {}

  // Calls use(panel) for some panels, with the products of rows [count, depth] and of the panel in
  // `sums`.
  template <typename Use>
  void each_panel(const int8_t* x, int64_t count, int64_t first_panel, int64_t end_panel,
                  const Use& use) {
    const int64_t depth = columns_.depth(), whole = depth / kQuad;
    const int64_t at_once = columns_.quads_at_once();
    multiply_ = columns_.multiply_by(x, count * depth);
    for (int64_t r = 0; r < count; ++r) {
      const auto sum = static_cast<uint32_t>(sum_of_bytes(x + r * depth, depth));
      excess_[r] = sum * static_cast<uint32_t>(columns_.offset());
      std::memcpy(ends_.get() + r * kQuad, x + r * depth + whole * kQuad, depth - whole * kQuad);
    }
    if (depth == 0) std::fill(sums_.get(), sums_.get() + kRowChunk * kPanel, 0);
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      columns_.prepare(panel);
      for (int64_t q = 0; q < whole; q += at_once) {
        multiply(x + q * kQuad, depth, count, panel, q, std::min(at_once, whole - q));
      }
      if (whole < columns_.quads()) multiply(ends_.get(), kQuad, count, panel, whole, 1);
      use(panel);
    }
  }

  // Writes the products of rows [count, depth] with all columns but the first panels, times the
  // units, to `to`.
  void compute(const int8_t* x, int64_t count, int64_t first_panel, const float* row_unit,
               const float* column_unit, float* to, int64_t stride) {
    each_panel(x, count, first_panel, columns_.panels(), [&](int64_t panel) {
      const int64_t first = panel * kPanel;
      scale_sums(sums_.get(), excess_, row_unit, column_unit + first, count,
                 std::min(kPanel, columns_.width() - first), to + first, stride);
    });
  }

  // The products of a row and of the panel's unsigned columns: too large by the row's `excess`.
  const int32_t* sums(int64_t row) const { return sums_.get() + row * kPanel; }
  const uint32_t* excess() const { return excess_; }

 private:
  // Adds the products of some quads of all rows, which begin at `x`, with a panel.
  void multiply(const int8_t* x, int64_t stride, int64_t count, int64_t panel, int64_t quad,
                int64_t quads) {
    for (int64_t first = 0; first < count; first += kBlock) {
      RowBlock block;
      for (int64_t r = 0; r < kBlock; ++r) {
        block.rows[r] = x + std::min(first + r, count - 1) * stride;
      }
      multiply_(block, columns_.at(panel, quad), quads, quad == 0, sums_.get() + first * kPanel);
    }
  }

  const PackedColumns& columns_;
  MultiplyBlock multiply_ = nullptr;  // for the rows at hand
  Lines<int32_t> sums_;
  Lines<int8_t> ends_;  // the last, incomplete quad of each row
  uint32_t excess_[kRowChunk];
};

}  // namespace
}  // namespace mmga
