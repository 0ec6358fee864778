// The loops behind TableKernels over the quads of table_quads.h. Included inside the anonymous
// namespace of each instruction set's file, after table_quads.h and
//
//   fma(a, b, c) = a * b + c        of quads
//   kDirectTokens                   the most tokens whose sums stay in registers

template <int kBits>
void fill(const uint8_t* const* rows, int64_t cols, int64_t c0, int64_t c1, const float* scale,
          float* tile, int64_t stride) {
  for (int lane = 0; lane < pvq::kTileLanes; lane += 4)
    for (int64_t c = c0; c < c1; c += 4) {
      Quad w[4];
      for (int r = 0; r < 4; ++r) w[r] = quad_at<kBits>(rows[lane + r], cols, c) * scale[lane + r];
      const Quad low01 = __builtin_shuffle(w[0], w[1], QuadBits{0, 4, 1, 5});
      const Quad low23 = __builtin_shuffle(w[2], w[3], QuadBits{0, 4, 1, 5});
      const Quad high01 = __builtin_shuffle(w[0], w[1], QuadBits{2, 6, 3, 7});
      const Quad high23 = __builtin_shuffle(w[2], w[3], QuadBits{2, 6, 3, 7});
      float* out = tile + (c - c0) * stride + lane;
      store(out, __builtin_shuffle(low01, low23, QuadBits{0, 1, 4, 5}));
      store(out + stride, __builtin_shuffle(low01, low23, QuadBits{2, 3, 6, 7}));
      store(out + 2 * stride, __builtin_shuffle(high01, high23, QuadBits{0, 1, 4, 5}));
      store(out + 3 * stride, __builtin_shuffle(high01, high23, QuadBits{2, 3, 6, 7}));
    }
}

PVQ_INLINE float total(Quad q) { return (q[0] + q[2]) + (q[1] + q[3]); }

// Sums for kRows rows at once: they share the loads of x, and their additions do not wait for each
// other.
template <int kBits, int kTokens, int kRows>
PVQ_INLINE void direct_rows(const uint8_t* rows, int64_t row_bytes, int64_t cols, int64_t c0,
                            int64_t c1, const float* scale, const float* x, float* c,
                            int64_t stride) {
  Quad sum[kRows][kTokens][2] = {};
  for (int64_t column = c0; column < c1; column += 8)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Quad w[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r)
        w[r] = quad_at<kBits>(rows + r * row_bytes, cols, column + 4 * half);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const Quad a = load(x + t * cols + column + 4 * half);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) sum[r][t][half] = fma(w[r], a, sum[r][t][half]);
      }
    }
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTokens; ++t)
      c[t * stride + r] += scale[r] * total(sum[r][t][0] + sum[r][t][1]);
}

template <int kBits, int kTokens = kDirectTokens>
void direct(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t cols, int64_t c0,
            int64_t c1, const float* scale, const float* x, int tokens, float* c, int64_t stride) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens)
      return direct<kBits, kTokens - 1>(rows, row_bytes, count, cols, c0, c1, scale, x, tokens, c,
                                        stride);
  }
  int64_t r = 0;
  for (; r + 2 <= count; r += 2)
    direct_rows<kBits, kTokens, 2>(rows + r * row_bytes, row_bytes, cols, c0, c1, scale + r, x,
                                   c + r, stride);
  if (r < count)
    direct_rows<kBits, kTokens, 1>(rows + r * row_bytes, row_bytes, cols, c0, c1, scale + r, x,
                                   c + r, stride);
}

template <int kBits>
constexpr pvq::TableKernels kernels() {
  return {&fill<kBits>, kDirectTokens, 8, &direct<kBits>, nullptr, nullptr};
}
