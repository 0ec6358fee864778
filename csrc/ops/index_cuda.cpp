// Exact indices on the GPU in the order of the tensor cores: their product and their expansion.
#include "cuda/index_matmul.h"
#include "ops/code.h"
#include "ops/fragments.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

// The numbers of a code and the bytes of its fragments, checked; reads nothing of a device.
struct IndexCode {
  const Regions& regions;
  const std::vector<float>& levels;
  int gain_bits;
};

IndexCode checked_index_code(const char* op, const Tensor& fragments, int64_t rows, int64_t dim,
                             int64_t pulses, int64_t gain_bits, const std::string& gain_law,
                             int64_t cols) {
  PVQ_CHECK(dim == 8 || dim == 16, "pvq::", op, ": dim is ", dim, ", expected 8 or 16");
  check_range(op, "pulses", pulses, 1, kRegionPulses);
  PVQ_CHECK(cols >= 0 && cols % kChunkCols == 0, "pvq::", op, ": cols is ", cols,
            ", expected a multiple of ", kChunkCols);
  const std::vector<float>& levels = checked_levels(op, dim, cols, gain_bits, gain_law);
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  const Regions& regions = Regions::get(int(dim), int(pulses));
  const int64_t bytes = tiles_of(rows) * (cols / kChunkCols) *
                        index_chunk_bytes(int(dim), index_group_bits(regions, int(gain_bits)));
  PVQ_CHECK(fragments.numel() == bytes && fragments.is_contiguous(), "pvq::", op,
            ": fragments has ", fragments.numel(), " bytes, expected the ", bytes, " of ", rows,
            " rows and ", cols, " columns, one after the other");
  return {regions, levels, int(gain_bits)};
}

// On the current device, which must be one that products run on.
IndexForm form_of(const char* op, const IndexCode& code) {
  PVQ_CHECK(products_supported(), "pvq::", op,
            ": exact indices are multiplied on GPUs of compute capability 9.0 with kernels built "
            "for sm_90a; use layout='fragments' or 'stored' here");
  IndexForm form{};
  check_cuda(op, index_form_cuda(code.regions, code.gain_bits, code.levels.data(), &form));
  return form;
}

Tensor index_expand(const Tensor& fragments, const Tensor& row_scale, int64_t dim, int64_t pulses,
                    int64_t gain_bits, std::string gain_law, int64_t cols, ScalarType dtype) {
  constexpr const char* op = "index_expand";
  check_fragments(op, fragments, row_scale);
  check_expanded_dtype(op, dtype);
  const int64_t rows = row_scale.size(0);
  const IndexCode code =
      checked_index_code(op, fragments, rows, dim, pulses, gain_bits, gain_law, cols);
  const DeviceGuard guard(fragments.get_device_index());
  const IndexForm form = form_of(op, code);
  const Tensor scale = torch::stable::contiguous(row_scale), source = aligned(fragments);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, index_expand_cuda(source.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   int(dim), form, real_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

Tensor index_matmul(const Tensor& x, const Tensor& fragments, const Tensor& row_scale, int64_t dim,
                    int64_t pulses, int64_t gain_bits, std::string gain_law, int64_t block,
                    int64_t seed) {
  constexpr const char* op = "index_matmul";
  check_fragment_operands(op, x, fragments, row_scale);
  PVQ_CHECK(x.dim() >= 1, "pvq::index_matmul: x has shape ", shape_name(x),
            ", expected [..., cols]");
  const int64_t cols = x.size(-1);
  const IndexCode code =
      checked_index_code(op, fragments, row_scale.size(0), dim, pulses, gain_bits, gain_law, cols);
  const DeviceGuard guard(x.get_device_index());
  IndexProduct task{};
  task.dim = int(dim);
  task.form = form_of(op, code);
  return multiply_fragments(
      op, x, fragments, row_scale, cols, {block, seed}, task, index_product_workspace,
      index_product_cuda,
      [&] {
        return index_expand(fragments, row_scale, dim, pulses, gain_bits, gain_law, cols,
                            x.scalar_type());
      },
      kMaxIndexTokens);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("index_expand", TORCH_BOX(&index_expand));
  m.impl("index_matmul", TORCH_BOX(&index_matmul));
}

}  // namespace pvq::ops
