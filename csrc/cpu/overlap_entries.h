// Rows of a table by number, one load each. Gathers do the same in one instruction, but take longer
// on most processors: on AMD's they are sequences of loads in microcode, on Intel's since the
// mitigation of Downfall (INTEL-SA-00828).
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

// entry[i] = table[at[i]], i < kCount, an even number.
template <int kCount, class Entry>
[[gnu::always_inline]] inline void read_entries(const Entry* table, const uint32_t* at,
                                                Entry* entry) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; i += 2) {
    uint64_t two;
    memcpy(&two, at + i, sizeof two);
    asm("" : "+r"(two));  // or the compiler makes a gather of it
    entry[i] = table[uint32_t(two)];
    entry[i + 1] = table[two >> 32];
  }
}

}  // namespace
