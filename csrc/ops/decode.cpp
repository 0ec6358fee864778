// decode on the CPU.
#include <algorithm>
#include <atomic>

#include "core/bits.h"
#include "ops/code.h"

namespace pvq::ops {
namespace {

Tensor decode_cpu(const Tensor& index, int64_t dim, int64_t pulses, int64_t groups) {
  constexpr const char* op = "decode";
  check_dtype(op, "index", index, {ScalarType::Byte});
  check_rank(op, "index", index, 2);
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  STD_TORCH_CHECK(groups >= 0, "pvq::decode: groups is ", groups, ", expected 0 or more");
  const int64_t rows = index.size(0);
  const int64_t stride = bits::bytes_for(groups, pyramid.view().index_bits);
  check_shape(op, "index", index, {rows, stride});
  const Tensor input = torch::stable::contiguous(index);
  Tensor y = torch::stable::new_empty(index, {rows, groups, dim}, ScalarType::Short);
  const uint8_t* in = input.const_data_ptr<uint8_t>();
  int16_t* out = y.mutable_data_ptr<int16_t>();
  std::atomic<int64_t> refused = -1;
  torch::stable::parallel_for(
      0, rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, groups)),
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          if (!decode_points(pyramid, in + r * stride, 0, groups, out + r * groups * dim))
            refused = r;
      });
  if (refused >= 0) refuse_index(op, refused);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) { m.impl("decode", TORCH_BOX(&decode_cpu)); }

}  // namespace pvq::ops
