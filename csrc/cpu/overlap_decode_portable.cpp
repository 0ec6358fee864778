// OverlapDecoder for any machine.
#include <string.h>

#include "cpu/overlap_decode.h"

namespace {

template <int kDim>
void decode_groups(const pvq::OverlapTrellis& t, const int8_t* table, int spread,
                   const uint8_t* stream, int groups, int8_t* y) {
  int8_t entry[pvq::kOverlapBlock / kDim + pvq::kMaxOverlapLag][2 * kDim];
  const int step = t.stored_bits();
  int64_t bit = t.step_bits - t.window_bits - int64_t{step} * t.lag + 8 * pvq::kStreamBefore;
  stream -= pvq::kStreamBefore;
  for (int i = 0; i < groups + t.lag; ++i, bit += step) {
    uint32_t word;
    memcpy(&word, stream + bit / 8, sizeof word);
    word >>= bit % 8;
    memcpy(entry[i], table + (word & (t.rows() - 1)) * (2 * kDim), 2 * kDim);
    if (t.spread)
      for (int k = 0; k < kDim; ++k)
        entry[i][k] = int8_t(entry[i][k] + (word >> (t.window_bits + k) & 1 ? spread : -spread));
  }
  for (int i = 0; i < groups; ++i)
    for (int k = 0; k < kDim; ++k)
      y[kDim * i + k] = int8_t(entry[i + t.lag][k] + entry[i][kDim + k]);
}

void decode(const pvq::OverlapTrellis& t, const pvq::OverlapWindows&, const int8_t* table,
            int spread, const uint8_t* stream, int groups, int8_t* y) {
  return t.dim == 2 ? decode_groups<2>(t, table, spread, stream, groups, y)
                    : decode_groups<4>(t, table, spread, stream, groups, y);
}

void dot(const int8_t* y, int count, const float* x, int64_t stride, int tokens, float (*sum)[16]) {
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < count; c += 16)
      for (int l = 0; l < 16; ++l) sum[t][l] += float(y[c + l]) * x[t * stride + c + l];
}

}  // namespace

const pvq::OverlapDecoder pvq::overlap_decoder_portable = {&decode, &dot, nullptr};
