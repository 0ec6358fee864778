// Planes of pyramid points on the GPU: their product and their expansion.
#include "cuda/plane_matmul.h"
#include "ops/fragments.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

struct PlaneWidth {
  int bits, group;
};

// Bits and group of the planes, which the size of a chunk tells apart.
PlaneWidth checked_width(const char* op, const Tensor& fragments, int64_t rows, int64_t cols) {
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  PVQ_CHECK(cols % kChunkCols == 0, "pvq::", op, ": cols is ", cols, ", expected a multiple of ",
            kChunkCols);
  const int64_t chunks = tiles_of(rows) * (cols / kChunkCols);
  for (const int bits : {4, 6, 8})
    for (const int group : {8, 16})
      if (chunks * plane_chunk_bytes(bits, group) == fragments.numel() && fragments.is_contiguous())
        return {bits, group};
  fail("pvq::", op, ": fragments has ", fragments.numel(), " bytes, expected the planes of ", rows,
       " rows and ", cols, " columns");
}

Tensor plane_expand(const Tensor& fragments, const Tensor& row_scale, int64_t cols,
                    ScalarType dtype) {
  constexpr const char* op = "plane_expand";
  check_fragments(op, fragments, row_scale);
  check_expanded_dtype(op, dtype);
  PVQ_CHECK(cols >= 0, "pvq::plane_expand: cols is ", cols, ", expected at least 0");
  const int64_t rows = row_scale.size(0);
  const PlaneWidth width = checked_width(op, fragments, rows, cols);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor scale = torch::stable::contiguous(row_scale), source = aligned(fragments);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, plane_expand_cuda(source.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   width.bits, width.group, real_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

Tensor plane_matmul(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                    int64_t block, int64_t seed) {
  constexpr const char* op = "plane_matmul";
  check_fragment_operands(op, x, fragments, row_scale);
  PVQ_CHECK(x.dim() >= 1, "pvq::plane_matmul: x has shape ", shape_name(x),
            ", expected [..., cols]");
  const int64_t cols = x.size(-1);
  const PlaneWidth width = checked_width(op, fragments, row_scale.size(0), cols);
  PlaneProduct task{};
  task.bits = width.bits;
  task.group = width.group;
  return multiply_fragments(
      op, x, fragments, row_scale, cols, {block, seed}, task, plane_product_workspace,
      plane_product_cuda, [&] { return plane_expand(fragments, row_scale, cols, x.scalar_type()); },
      kMaxPlaneTokens);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("plane_expand", TORCH_BOX(&plane_expand));
  m.impl("plane_matmul", TORCH_BOX(&plane_matmul));
}

}  // namespace pvq::ops
