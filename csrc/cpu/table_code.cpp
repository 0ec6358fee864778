#include "cpu/table_code.h"

namespace pvq {
namespace {

#include "cpu/table_quads.h"

template <int kBits>
void dequantize(const TableView& code, int64_t row, int64_t c0, int64_t c1, float* w) {
  const uint8_t* bytes = code.row(row);
  const float scale = code.scale(row);
  for (int64_t c = c0; c < c1; c += 4)
    store(w + c - c0, quad_at<kBits>(bytes, code.cols, c) * scale);
}

}  // namespace

void dequantize_table(const TableView& code, int64_t row, int64_t c0, int64_t c1, float* w) {
  switch (code.bits) {
    case 2:
      return dequantize<2>(code, row, c0, c1, w);
    case 3:
      return dequantize<3>(code, row, c0, c1, w);
    default:
      return dequantize<4>(code, row, c0, c1, w);
  }
}

}  // namespace pvq
