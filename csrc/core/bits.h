// Bit streams: field number i of `width` bits begins at bit i * width; bit b of the stream is bit
// b % 8 of byte b / 8. Fields of a row of codes follow each other without gaps.
#pragma once

#include <cstring>

#include "core/platform.h"

namespace pvq::bits {

PVQ_HD inline int64_t bytes_for(int64_t fields, int width) { return (fields * width + 7) / 8; }

// A field of 1 to 64 bits; reads no byte outside the field.
PVQ_HD inline uint64_t read(const uint8_t* stream, int64_t bit, int width) {
  const uint8_t* byte = stream + (bit >> 3);
  const int skip = int(bit & 7), last = (skip + width - 1) >> 3;  // last byte of the field, 0 to 8
  uint64_t value = 0;
  for (int i = 0; i <= last && i < 8; ++i) value |= uint64_t(byte[i]) << (8 * i);
  value >>= skip;
  if (last == 8) value |= uint64_t(byte[8]) << (64 - skip);
  return width == 64 ? value : value & ((uint64_t(1) << width) - 1);
}

// Adds a field of 1 to 64 bits to a stream whose bits there are zero.
PVQ_HD inline void write(uint8_t* stream, int64_t bit, int width, uint64_t value) {
  uint8_t* byte = stream + (bit >> 3);
  const int skip = int(bit & 7), last = (skip + width - 1) >> 3;
  const uint64_t shifted = value << skip;
  for (int i = 0; i <= last && i < 8; ++i) byte[i] |= uint8_t(shifted >> (8 * i));
  if (last == 8) byte[8] |= uint8_t(value >> (64 - skip));
}

// The same for fields of any width, as 32-bit limbs.
PVQ_HD inline void read_limbs(const uint8_t* stream, int64_t bit, int width, uint32_t* limbs) {
  for (int i = 0; 32 * i < width; ++i) {
    const int left = width - 32 * i;
    limbs[i] = uint32_t(read(stream, bit + 32 * i, left < 32 ? left : 32));
  }
}

PVQ_HD inline void write_limbs(uint8_t* stream, int64_t bit, int width, const uint32_t* limbs) {
  for (int i = 0; 32 * i < width; ++i) {
    const int left = width - 32 * i;
    write(stream, bit + 32 * i, left < 32 ? left : 32, limbs[i]);
  }
}

}  // namespace pvq::bits
