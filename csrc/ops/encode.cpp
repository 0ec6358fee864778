// nearest, encode and quantize on the CPU.
#include "cpu/encode.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "core/bits.h"
#include "ops/code.h"

namespace pvq::ops {
namespace {

using torch::stable::parallel_for;

// Points handed to a thread at once: a few hundred microseconds of work.
constexpr int64_t kPointGrain = 256;

void check_quality(const char* op, int64_t quality) { check_range(op, "quality", quality, 0, 2); }

Tensor nearest_cpu(const Tensor& x, int64_t pulses, int64_t quality) {
  constexpr const char* op = "nearest";
  check_dtype(op, "x", x,
              {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  STD_TORCH_CHECK(x.dim() >= 1, "pvq::nearest: x is a scalar, expected [..., dim]");
  const int64_t dim = x.size(-1);
  check_range(op, "dim (the last size of x)", dim, 1, kMaxDim);
  check_range(op, "pulses", pulses, 1, kMaxPulses);
  check_quality(op, quality);
  const Tensor input = torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
  Tensor y = torch::stable::new_empty(input, input.sizes(), ScalarType::Short);
  const float* in = input.const_data_ptr<float>();
  int16_t* out = y.mutable_data_ptr<int16_t>();
  std::atomic<bool> finite = true;
  parallel_for(0, x.numel() / dim, kPointGrain, [&](int64_t begin, int64_t end) {
    if (!nearest_points(in + begin * dim, end - begin, int(dim), int(pulses), int(quality),
                        out + begin * dim))
      finite = false;
  });
  STD_TORCH_CHECK(finite, "pvq::nearest: x holds NaN or infinity, expected finite values");
  return y;
}

Tensor encode_cpu(const Tensor& y, int64_t pulses) {
  constexpr const char* op = "encode";
  check_dtype(op, "y", y, {ScalarType::Short});
  check_rank(op, "y", y, 3);
  const int64_t rows = y.size(0), groups = y.size(1), dim = y.size(2);
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  const Tensor points = torch::stable::contiguous(y);
  const int64_t stride = bits::bytes_for(groups, pyramid.view().index_bits);
  Tensor index = torch::stable::new_zeros(y, {rows, stride}, ScalarType::Byte);
  const int16_t* in = points.const_data_ptr<int16_t>();
  uint8_t* out = index.mutable_data_ptr<uint8_t>();
  std::atomic<int64_t> refused = -1;
  parallel_for(0, rows, std::max<int64_t>(1, kPointGrain / std::max<int64_t>(1, groups)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) {
                   int64_t bad = 0;
                   const int16_t* row = in + r * groups * dim;
                   if (check_points(row, groups, int(dim), int(pulses), &bad)) {
                     encode_points(pyramid, row, 0, groups, out + r * stride);
                   } else {
                     refused = r * groups + bad;
                   }
                 }
               });
  STD_TORCH_CHECK(refused < 0, "pvq::encode: y[", refused / std::max<int64_t>(1, groups), ", ",
                  refused % std::max<int64_t>(1, groups),
                  "] is no point of the pyramid, expected a sum of magnitudes of ", pulses,
                  " or all zeros");
  return index;
}

std::tuple<Tensor, Tensor, Tensor> quantize_cpu(const Tensor& w, int64_t dim, int64_t pulses,
                                                int64_t gain_bits, std::string law,
                                                int64_t quality) {
  constexpr const char* op = "quantize";
  check_dtype(op, "w", w, {ScalarType::Float});
  check_rank(op, "w", w, 2);
  const int64_t rows = w.size(0), cols = w.size(1);
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  STD_TORCH_CHECK(cols % dim == 0, "pvq::quantize: w has ", cols,
                  " columns, expected a multiple of dim = ", dim);
  const std::vector<float>& levels = checked_levels(op, dim, cols, gain_bits, law);
  check_quality(op, quality);
  const Tensor input = torch::stable::contiguous(w);
  const int64_t groups = cols / dim;
  const int64_t index_stride = bits::bytes_for(groups, pyramid.view().index_bits);
  const int64_t gain_stride = bits::bytes_for(groups, int(gain_bits));
  Tensor index = torch::stable::new_zeros(w, {rows, index_stride}, ScalarType::Byte);
  Tensor gain = torch::stable::new_zeros(w, {rows, gain_stride}, ScalarType::Byte);
  Tensor row_scale = torch::stable::new_zeros(w, {rows}, ScalarType::BFloat16);
  const float* in = input.const_data_ptr<float>();
  const RowCode out = {index.mutable_data_ptr<uint8_t>(), gain.mutable_data_ptr<uint8_t>(),
                       static_cast<uint16_t*>(row_scale.mutable_data_ptr())};
  std::atomic<int64_t> refused = -1;
  parallel_for(0, rows, std::max<int64_t>(1, kPointGrain / std::max<int64_t>(1, groups)),
               [&](int64_t begin, int64_t end) {
                 RowQuantizer quantize_row(pyramid, cols, int(gain_bits), levels, int(quality));
                 for (int64_t r = begin; r < end; ++r) {
                   const RowCode row = {out.index + r * index_stride, out.gain + r * gain_stride,
                                        out.row_scale + r};
                   if (!quantize_row(in + r * cols, row)) refused = r;
                 }
               });
  STD_TORCH_CHECK(refused < 0, "pvq::quantize: row ", int64_t(refused),
                  " of w holds NaN or infinity, expected finite weights");
  return {index, gain, row_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("nearest", TORCH_BOX(&nearest_cpu));
  m.impl("encode", TORCH_BOX(&encode_cpu));
  m.impl("quantize", TORCH_BOX(&quantize_cpu));
}

}  // namespace pvq::ops
