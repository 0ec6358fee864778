// bfloat16: the upper half of a float32.
#pragma once

#include <cstring>

#include "core/platform.h"

namespace pvq {

// Rounded to the nearest, ties to even; one NaN for all.
PVQ_HD inline uint16_t to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  if ((word & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
  return uint16_t((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

PVQ_HD inline float from_bfloat16(uint16_t half) {
  const uint32_t word = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

}  // namespace pvq
