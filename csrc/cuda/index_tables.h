// The tables of index_form.h as bytes, before they go to a device.
#pragma once

#include <vector>

#include "cuda/index_matmul.h"

namespace pvq {

// form's numbers, and in `bytes` what its pointers are to point at: the tables for shared memory,
// the starts, the leaves; *start and *leaf are offsets.
struct IndexTables {
  IndexForm form{};
  std::vector<uint8_t> bytes;
  size_t start = 0, leaf = 0;

  IndexTables(const Regions& regions, int gain_bits, const float* levels);
  // The form once bytes[0] stands at `base`, 16-byte aligned.
  IndexForm at(const uint8_t* base) const;
};

}  // namespace pvq
