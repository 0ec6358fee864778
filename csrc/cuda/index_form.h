// How a product kernel reads exact indices: the numbers of the layout (index_matmul.h) and the
// tables that undo the words of core/regions.h.
//
//   shared memory from kTableAddress on
//     pulses   2 x [33] words  D = 16: 15 bits of what the fraction tells apart, below the address
//                              of the leaves; of the first two leaves, of the others
//                              D = 8: the address of the leaves, and M(k)
//     shares   [33] words      share(k), D = 8
//     cells    [128] halves    D = 16: 5 bits of slot_bits, below the address of the first region
//     regions  words           D = 16: the leaves' pulses times 4, a byte each, first lowest
//              [512] pairs     D = 8, by unit: where its region begins, and the same pulses
//     levels   [2^gain_bits] float
//     leaves   words           of as many pulses as there is room for, int8 a coordinate; the one
//              without pulses takes four
//
// Bit 0 of a region's pulses says that there is no room for the leaves of some: those are read from
// global memory, where the leaves of all pulses are. Their address here is kIndexRareAddress,
// behind which there is shared memory for as many.
#pragma once

#include <cstdint>

#include "cuda/shared_memory.h"

namespace pvq {

// Leaves of 16 pulses and fewer beside the regions of K = 28.
constexpr int kIndexTableBytes = 117 * 1024;
constexpr int kIndexPulses = kTableAddress;
constexpr int kIndexPulsesBytes = 144;  // of each of the two
constexpr int kIndexShares = kIndexPulses + 2 * kIndexPulsesBytes;
constexpr int kIndexCells = kIndexShares + 160;
constexpr int kIndexRegions = kIndexCells + 256;
static_assert(kIndexRegions % 32 == 0);  // as the first region of each cell

constexpr int kIndexCountBits = 15;  // of Regions::fraction_count
constexpr uint32_t kIndexCountMask = (1u << kIndexCountBits) - 1;

constexpr int kIndexRareAddress = kTableAddress;
// Bytes from kTableAddress on that a kernel must have for that: four times M(32), rounded up.
constexpr int kIndexReachBytes = 172 * 1024;

struct IndexForm {
  const uint8_t* tables;         // what shared memory gets, in global memory; 16-byte aligned
  const uint32_t *start, *leaf;  // of all leaves: [33], and all of them
  int table_bytes;               // a multiple of 16
  uint32_t levels;               // their address
  int bits;                      // of a group: word, gain, signs
  int gain_bits;
  int most_pulses;           // of a leaf in shared memory
  int word_bits, unit_bits;  // D = 8
  int cell_bits, split;      // D = 16
};

}  // namespace pvq
