// The operators that every stored form has on the GPU, given the kernel that expands it. Products
// expand the code to a dense scratch of the activations' dtype that lives for the call, and the
// library multiplies.
#pragma once

#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/dense_product.h"
#include "ops/matmul.h"

namespace pvq::ops {

// A checked stored form; its view has rows and cols.
template <class View>
class CodeOnCuda {
 public:
  // expand(view, type, w, stream) writes w [rows, cols], still rotated, and returns a cudaError_t.
  using Expand = int (*)(const View&, RealType, void*, void*);

  // `code` is what messages compare with, by its name among the arguments of `op`.
  CodeOnCuda(const char* op, const View& view, const char* name, const Tensor& code, Expand expand)
      : op_(op), view_(view), name_(name), code_(code), expand_(expand) {}

  // The matrix, rotated back.
  Tensor dequantize(ScalarType dtype, Rotation rotation) const {
    check_weight_dtype(op_, dtype);
    check_rotation(op_, rotation, view_.cols);
    const DeviceGuard guard(code_.get_device_index());
    // Rotated weights are rounded after the rotation, and there is no kernel for float64.
    const bool exact = rotation.block != 0 || dtype == ScalarType::Double;
    const Tensor w = expanded(exact ? ScalarType::Float : dtype);
    if (rotation.block) hadamard_on_cuda_(w, rotation.block, rotation.seed, /*inverse=*/true);
    return as_dtype(w, dtype);
  }

  // rotate(x) W^T.
  Tensor multiply(const Tensor& x, Rotation rotation) const {
    check_activations(op_, "x", x, view_.cols, "in_features", name_, code_);
    check_rotation(op_, rotation, view_.cols);
    const DeviceGuard guard(x.get_device_index());
    return multiply_dense(x, expanded(x.scalar_type()), rotation);
  }

  // g W, rotated back.
  Tensor multiply_transposed(const Tensor& g, Rotation rotation) const {
    check_activations(op_, "g", g, view_.rows, "rows of the matrix", name_, code_);
    check_rotation(op_, rotation, view_.cols);
    const DeviceGuard guard(g.get_device_index());
    return multiply_dense_transposed(g, expanded(g.scalar_type()), rotation);
  }

 private:
  using DeviceGuard = torch::stable::accelerator::DeviceGuard;

  // Of a float dtype that kernels write.
  Tensor expanded(ScalarType dtype) const {
    Tensor w = torch::stable::new_empty(code_, {view_.rows, view_.cols}, dtype);
    check_cuda(op_,
               expand_(view_, real_type(dtype), w.mutable_data_ptr(), current_cuda_stream(code_)));
    return w;
  }

  const char* op_;
  const View& view_;
  const char* name_;
  const Tensor& code_;
  Expand expand_;
};

}  // namespace pvq::ops
