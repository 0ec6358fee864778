// PointsKernels in plain loops over 16 lanes, which compilers turn into vectors; compiled once for
// each instruction set that has no better. Included inside an anonymous namespace.

struct Nibbles {
  static constexpr int kUnit = 8;
  const int32_t* words;

  // The weights of the column that is byte `place` of unit `unit`.
  void lanes(int64_t unit, int place, int16_t* out) const {
    const int column = place < 4 ? 2 * place : 2 * place - 7;
    const int32_t* w = words + unit * 16;
    for (int l = 0; l < 16; ++l)
      out[l] = static_cast<int16_t>(
          static_cast<int32_t>(static_cast<uint32_t>(w[l]) << (28 - 4 * column)) >> 28);
  }
};

struct Bytes {
  static constexpr int kUnit = 4;
  const int8_t* bytes;

  void lanes(int64_t unit, int place, int16_t* out) const {
    const int8_t* b = bytes + (unit * kUnit + place) * 16;
    for (int l = 0; l < 16; ++l) out[l] = b[l];
  }
};

template <class Plane>
void multiply(const Plane& plane, const float* scale, const pvq::PointsBlock& block, float* c,
              int64_t stride) {
  constexpr int kUnit = Plane::kUnit;
  const int tokens = block.tokens;
  const int64_t units = block.dim / kUnit;
  for (int64_t g = 0; g < block.groups; ++g) {
    int32_t sum[pvq::kPointTokens][16] = {};
    for (int64_t u = g * units; u < (g + 1) * units; ++u) {
      const int8_t* y = block.y + u * tokens * kUnit;
      for (int place = 0; place < kUnit; ++place) {
        int16_t w[16];
        plane.lanes(u, place, w);
        for (int t = 0; t < tokens; ++t)
          for (int l = 0; l < 16; ++l)
            sum[t][l] += static_cast<int32_t>(w[l]) * y[t * kUnit + place];
      }
    }
    const float* amplitude = block.amplitude + g / block.amplitude_groups * tokens;
    for (int t = 0; t < tokens; ++t)
      for (int l = 0; l < 16; ++l)
        c[t * stride + l] += static_cast<float>(sum[t][l]) * (scale[g * 16 + l] * amplitude[t]);
  }
}

void multiply4(const int32_t* words, const float* scale, const pvq::PointsBlock& block, float* c,
               int64_t stride) {
  multiply(Nibbles{words}, scale, block, c, stride);
}

void multiply8(const int8_t* bytes, const float* scale, const pvq::PointsBlock& block, float* c,
               int64_t stride) {
  multiply(Bytes{bytes}, scale, block, c, stride);
}
