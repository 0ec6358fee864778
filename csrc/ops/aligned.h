// Tensors as kernels with vector loads want them.
#pragma once

#include "ops/checks.h"

namespace pvq::ops {

// Contiguous and on a 16-byte boundary, copied if need be.
inline Tensor aligned(const Tensor& t) {
  const Tensor dense = torch::stable::contiguous(t);
  const bool fits = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0;
  return fits ? dense : torch::stable::clone(dense);
}

}  // namespace pvq::ops
