// OverlapDecoder for any machine.
#include <string.h>

#include "cpu/overlap_decode.h"

namespace {

void decode(const pvq::OverlapTrellis& t, const pvq::OverlapWindows&, const int8_t* table,
            const uint8_t* stream, int groups, int8_t* y) {
  int8_t entry[pvq::kOverlapBlockGroups + pvq::kMaxOverlapLag][4];
  int64_t bit = int64_t{t.step_bits} * (1 - t.lag) - t.window_bits + 8 * pvq::kStreamBefore;
  stream -= pvq::kStreamBefore;
  for (int i = 0; i < groups + t.lag; ++i, bit += t.step_bits) {
    uint32_t word;
    memcpy(&word, stream + bit / 8, sizeof word);
    memcpy(entry[i], table + (word >> bit % 8 & (t.rows() - 1)) * 4, 4);
  }
  for (int i = 0; i < groups; ++i) {
    y[2 * i] = int8_t(entry[i + t.lag][0] + entry[i][2]);
    y[2 * i + 1] = int8_t(entry[i + t.lag][1] + entry[i][3]);
  }
}

void dot(const int8_t* y, int count, const float* x, int64_t stride, int tokens, float (*sum)[16]) {
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < count; c += 16)
      for (int l = 0; l < 16; ++l) sum[t][l] += float(y[c + l]) * x[t * stride + c + l];
}

}  // namespace

const pvq::OverlapDecoder pvq::overlap_decoder_portable = {&decode, &dot};
