// Products on the GPU with a dense matrix in the rotated domain: what remains where the codes have
// been expanded.
#pragma once

#include "ops/hadamard.h"
#include "ops/rotation.h"

namespace pvq::ops {

// rotate(x) W^T.
inline Tensor multiply_dense(const Tensor& x, const Tensor& w, Rotation rotation) {
  const Tensor rotated =
      rotation.block ? hadamard_on_cuda(x, rotation.block, rotation.seed, /*inverse=*/false) : x;
  return torch::stable::matmul(rotated, torch::stable::transpose(w, 0, 1));
}

// g W, rotated back.
inline Tensor multiply_dense_transposed(const Tensor& g, const Tensor& w, Rotation rotation) {
  const Tensor product = torch::stable::matmul(g, w);
  return rotation.block ? hadamard_on_cuda(product, rotation.block, rotation.seed, /*inverse=*/true)
                        : product;
}

}  // namespace pvq::ops
