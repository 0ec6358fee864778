#include "ops/code.h"

#include "core/bits.h"

namespace pvq::ops {

const Pyramid& checked_pyramid(const char* op, int64_t dim, int64_t pulses) {
  check_range(op, "dim", dim, 1, kMaxDim);
  check_range(op, "pulses", pulses, 1, kMaxPulses);
  return Pyramid::get(int(dim), int(pulses));
}

const std::vector<float>& checked_levels(const char* op, int64_t dim, int64_t cols,
                                         int64_t gain_bits, const std::string& law) {
  check_range(op, "gain_bits", gain_bits, 0, kMaxGainBits);
  PVQ_CHECK(law == "lloyd" || law == "beta", "pvq::", op, ": gain_law is '", law,
                  "', expected 'lloyd' or 'beta'");
  // A matrix without columns has no groups; any valid table serves.
  return gain_levels(int(dim), cols > 0 ? cols : dim, int(gain_bits), gain_law(law));
}

StoredCode checked_code(const char* op, const Tensor& index, const Tensor& gain,
                        const Tensor& row_scale, int64_t dim, int64_t pulses, int64_t gain_bits,
                        const std::string& law, int64_t cols) {
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  PVQ_CHECK(cols >= 0 && cols % dim == 0, "pvq::", op, ": cols is ", cols,
                  ", expected a multiple of dim = ", dim);
  const std::vector<float>& levels = checked_levels(op, dim, cols, gain_bits, law);
  check_dtype(op, "index", index, {ScalarType::Byte});
  check_dtype(op, "gain", gain, {ScalarType::Byte});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  const int64_t rows = row_scale.size(0), groups = cols / dim;
  const int64_t index_bytes = bits::bytes_for(groups, pyramid.view().index_bits);
  const int64_t gain_bytes = bits::bytes_for(groups, int(gain_bits));
  check_shape(op, "index", index, {rows, index_bytes});
  check_shape(op, "gain", gain, {rows, gain_bytes});
  check_same_device(op, "gain", gain, "index", index);
  check_same_device(op, "row_scale", row_scale, "index", index);

  StoredCode code{{},
                  torch::stable::contiguous(index),
                  torch::stable::contiguous(gain),
                  torch::stable::contiguous(row_scale)};
  code.view = {static_cast<const uint8_t*>(code.index.const_data_ptr()),
               index_bytes,
               static_cast<const uint8_t*>(code.gain.const_data_ptr()),
               gain_bytes,
               static_cast<const uint16_t*>(code.row_scale.const_data_ptr()),
               levels.data(),
               &pyramid,
               rows,
               cols,
               int(dim),
               int(pulses),
               int(gain_bits)};
  return code;
}

StoredIndex checked_index(const char* op, const Tensor& index, int64_t dim, int64_t pulses,
                          int64_t groups) {
  check_dtype(op, "index", index, {ScalarType::Byte});
  check_rank(op, "index", index, 2);
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  PVQ_CHECK(groups >= 0, "pvq::", op, ": groups is ", groups, ", expected 0 or more");
  const int64_t rows = index.size(0);
  const int64_t stride = bits::bytes_for(groups, pyramid.view().index_bits);
  check_shape(op, "index", index, {rows, stride});
  return {torch::stable::contiguous(index), pyramid, rows, groups, stride};
}

void refuse_index(const char* op, int64_t row) {
  fail("pvq::", op, ": index of row ", row,
                  " names no point of the pyramid; the codes are damaged or dim and pulses are not "
                  "those they were made with");
}

}  // namespace pvq::ops
