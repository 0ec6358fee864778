// The transform as other operators call it.
#pragma once

#include <optional>

#include "ops/checks.h"

namespace pvq::ops {

// torch.ops.pvq.hadamard of a CUDA tensor.
Tensor hadamard_on_cuda(const Tensor& x, int64_t block, std::optional<int64_t> seed, bool inverse);

// torch.ops.pvq.hadamard_ of a CUDA tensor.
void hadamard_on_cuda_(const Tensor& x, int64_t block, std::optional<int64_t> seed, bool inverse);

}  // namespace pvq::ops
