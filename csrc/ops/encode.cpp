// nearest, encode and quantize: what is checked on every device, and the CPU's operators.
#include "ops/encode.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "cpu/encode.h"

namespace pvq::ops {

NearestArguments check_nearest(const Tensor& x, int64_t pulses, int64_t quality) {
  constexpr const char* op = "nearest";
  check_dtype(op, "x", x,
              {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  PVQ_CHECK(x.dim() >= 1, "pvq::nearest: x is a scalar, expected [..., dim]");
  const int64_t dim = x.size(-1);
  check_range(op, "dim (the last size of x)", dim, 1, kMaxDim);
  check_range(op, "pulses", pulses, 1, kMaxPulses);
  check_range(op, "quality", quality, 0, 2);
  return {int(dim), int(pulses), int(quality), x.numel() / dim};
}

EncodeArguments check_encode(const Tensor& y, int64_t pulses) {
  constexpr const char* op = "encode";
  check_dtype(op, "y", y, {ScalarType::Short});
  check_rank(op, "y", y, 3);
  const Pyramid& pyramid = checked_pyramid(op, y.size(2), pulses);
  const int64_t groups = y.size(1);
  return {pyramid, y.size(0), groups, bits::bytes_for(groups, pyramid.view().index_bits)};
}

QuantizeArguments check_quantize(const Tensor& w, int64_t dim, int64_t pulses, int64_t gain_bits,
                                 const std::string& law, int64_t quality) {
  constexpr const char* op = "quantize";
  check_dtype(op, "w", w, {ScalarType::Float});
  check_rank(op, "w", w, 2);
  const int64_t cols = w.size(1);
  const Pyramid& pyramid = checked_pyramid(op, dim, pulses);
  PVQ_CHECK(cols % dim == 0, "pvq::quantize: w has ", cols,
            " columns, expected a multiple of dim = ", dim);
  const std::vector<float>& levels = checked_levels(op, dim, cols, gain_bits, law);
  check_range(op, "quality", quality, 0, 2);
  const int64_t groups = cols / dim;
  return {pyramid,
          levels,
          w.size(0),
          cols,
          groups,
          bits::bytes_for(groups, pyramid.view().index_bits),
          bits::bytes_for(groups, int(gain_bits)),
          int(gain_bits),
          int(quality)};
}

void refuse_vectors() { fail("pvq::nearest: x holds NaN or infinity, expected finite values"); }

void refuse_point(int64_t row, int64_t group, int64_t pulses) {
  fail("pvq::encode: y[", row, ", ", group,
       "] is no point of the pyramid, expected a sum of magnitudes of ", pulses, " or all zeros");
}

void refuse_row(int64_t row) {
  fail("pvq::quantize: row ", row, " of w holds NaN or infinity, expected finite weights");
}

namespace {

using torch::stable::parallel_for;

// Points handed to a thread at once: a few hundred microseconds of work.
constexpr int64_t kPointGrain = 256;

int64_t row_grain(int64_t groups) {
  return std::max<int64_t>(1, kPointGrain / std::max<int64_t>(1, groups));
}

Tensor nearest_cpu(const Tensor& x, int64_t pulses, int64_t quality) {
  const NearestArguments a = check_nearest(x, pulses, quality);
  const Tensor input = torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
  Tensor y = torch::stable::new_empty(input, input.sizes(), ScalarType::Short);
  const float* in = input.const_data_ptr<float>();
  int16_t* out = y.mutable_data_ptr<int16_t>();
  std::atomic<bool> finite = true;
  parallel_for(0, a.count, kPointGrain, [&](int64_t begin, int64_t end) {
    if (!nearest_points(in + begin * a.dim, end - begin, a.dim, a.pulses, a.quality,
                        out + begin * a.dim))
      finite = false;
  });
  if (!finite) refuse_vectors();
  return y;
}

Tensor encode_cpu(const Tensor& y, int64_t pulses) {
  const EncodeArguments a = check_encode(y, pulses);
  const Tensor points = torch::stable::contiguous(y);
  Tensor index = torch::stable::new_zeros(y, {a.rows, a.stride}, ScalarType::Byte);
  const int dim = a.pyramid.view().dim;
  const int16_t* in = points.const_data_ptr<int16_t>();
  uint8_t* out = index.mutable_data_ptr<uint8_t>();
  FirstRefused refused;
  parallel_for(0, a.rows, row_grain(a.groups), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t bad = 0;
      const int16_t* row = in + r * a.groups * dim;
      if (check_points(row, a.groups, dim, int(pulses), &bad)) {
        encode_points(a.pyramid, row, 0, a.groups, out + r * a.stride);
      } else {
        refused.report(r * a.groups + bad);
      }
    }
  });
  if (refused.element() >= 0)
    refuse_point(refused.element() / a.groups, refused.element() % a.groups, pulses);
  return index;
}

std::tuple<Tensor, Tensor, Tensor> quantize_cpu(const Tensor& w, int64_t dim, int64_t pulses,
                                                int64_t gain_bits, std::string law,
                                                int64_t quality) {
  const QuantizeArguments a = check_quantize(w, dim, pulses, gain_bits, law, quality);
  const Tensor input = torch::stable::contiguous(w);
  Tensor index = torch::stable::new_zeros(w, {a.rows, a.index_stride}, ScalarType::Byte);
  Tensor gain = torch::stable::new_zeros(w, {a.rows, a.gain_stride}, ScalarType::Byte);
  Tensor row_scale = torch::stable::new_zeros(w, {a.rows}, ScalarType::BFloat16);
  const float* in = input.const_data_ptr<float>();
  const RowCode out = {index.mutable_data_ptr<uint8_t>(), gain.mutable_data_ptr<uint8_t>(),
                       static_cast<uint16_t*>(row_scale.mutable_data_ptr())};
  FirstRefused refused;
  parallel_for(0, a.rows, row_grain(a.groups), [&](int64_t begin, int64_t end) {
    RowQuantizer quantize_row(a.pyramid, a.cols, a.gain_bits, a.levels, a.quality);
    for (int64_t r = begin; r < end; ++r) {
      const RowCode row = {out.index + r * a.index_stride, out.gain + r * a.gain_stride,
                           out.row_scale + r};
      if (!quantize_row(in + r * a.cols, row)) refused.report(r);
    }
  });
  if (refused.element() >= 0) refuse_row(refused.element());
  return {index, gain, row_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("nearest", TORCH_BOX(&nearest_cpu));
  m.impl("encode", TORCH_BOX(&encode_cpu));
  m.impl("quantize", TORCH_BOX(&quantize_cpu));
}

}  // namespace pvq::ops
