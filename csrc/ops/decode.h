// Decoding as other operators call it.
#pragma once

#include <string>

#include "ops/checks.h"

namespace pvq::ops {

// torch.ops.pvq.dequantize of CUDA tensors.
Tensor dequantize_on_cuda(const Tensor& index, const Tensor& gain, const Tensor& row_scale,
                          int64_t dim, int64_t pulses, int64_t gain_bits, std::string gain_law,
                          int64_t cols, ScalarType dtype, int64_t block, int64_t seed);

}  // namespace pvq::ops
