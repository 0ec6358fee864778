// How a product kernel reads exact indices: the numbers of the layout (index_matmul.h) and the
// tables that undo the words of core/regions.h.
//
//   shared memory from kTableAddress on
//     pulses   [33] words   16 bits of M(k) below 16 of the place of its leaves, in words from 0
//     shares   [33] words   share(k)
//     classes  3 x [32]     D = 16: reciprocal, minus the size, and the address of the first region
//     regions  pairs        D = 16: step, and the leaves' pulses times 4, a byte each, first lowest
//              [512] pairs  D = 8, by unit: where its region begins, and the same pulses
//     levels   [2^gain_bits] float
//     leaves   words        biased by 128, of as many pulses as there is room for
//
// Bit 0 of a region's pulses says that there is no room for the leaves of some: those are read from
// global memory, where the leaves of all pulses are. Their place here is kIndexRarePlace, behind
// which there is shared memory for as many.
#pragma once

#include <cstdint>

#include "cuda/shared_memory.h"

namespace pvq {

// Leaves of 16 pulses and fewer beside the regions of K = 28, and four stages of the ring.
constexpr int kIndexTableBytes = 134 * 1024;
constexpr int kIndexPulses = kTableAddress;
constexpr int kIndexShares = kIndexPulses + 144;
constexpr int kIndexClasses = kIndexShares + 144;
constexpr int kIndexClassBytes = 128;  // of each of the three
constexpr int kIndexRegions = kIndexClasses + 3 * kIndexClassBytes;

constexpr int kIndexRarePlace = kTableAddress / 4;
// Bytes from kTableAddress on that a kernel must have for that: four times M(32), rounded up.
constexpr int kIndexReachBytes = 172 * 1024;

struct IndexForm {
  const uint8_t* tables;         // what shared memory gets, in global memory; 16-byte aligned
  const uint32_t *start, *leaf;  // of all leaves: [33], and biased by 128
  int table_bytes;               // a multiple of 16
  uint32_t levels;               // their address
  int bits;                      // of a group: word, gain, signs
  int gain_bits, unit_bits;
  int class_shift;  // D = 16
  int most_pulses;  // of a leaf in shared memory
};

}  // namespace pvq
