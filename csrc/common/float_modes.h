// What the threads of torch's pool do with subnormal numbers. No torch header: module.cpp includes
// this file.
#pragma once

#include <cstdint>
#include <vector>

namespace mmga {

// Gives every thread of the caller's pool its control word, by number of the thread; to those
// without one, their own that keeps subnormal numbers. Returns the words that the threads had:
// passed back, they restore what was. Empty where the processor has no such word.
std::vector<uint32_t> exchange_float_modes(const std::vector<uint32_t>& words);

}  // namespace mmga
