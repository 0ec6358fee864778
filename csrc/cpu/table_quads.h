// Four weights of a pyramid-table code at a time, by one 16-byte load from a table of floats (two
// 8-byte loads at 4 bits). Included inside the anonymous namespace of each file that uses it, so
// that the linker never merges the instances of two instruction sets.

#define PVQ_INLINE inline __attribute__((always_inline))

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadBits __attribute__((vector_size(16)));
typedef int64_t QuadPairs __attribute__((vector_size(16)));

PVQ_INLINE Quad load(const float* p) {
  Quad q;
  __builtin_memcpy(&q, p, sizeof q);
  return q;
}
PVQ_INLINE void store(float* p, Quad q) { __builtin_memcpy(p, &q, sizeof q); }

template <int kBits>
struct Floats {
  static constexpr int kDim = pvq::TableCode<kBits>::kDim;
  alignas(16) float value[pvq::kTablePoints][kDim];
};

template <int kBits>
constexpr Floats<kBits> make_floats() {
  const auto table = pvq::make_point_table<kBits>();
  Floats<kBits> floats = {};
  for (int b = 0; b < pvq::kTablePoints; ++b)
    for (int i = 0; i < Floats<kBits>::kDim; ++i)
      floats.value[b][i] = float(pvq::table_magnitude<kBits>(table.point[b][i]));
  return floats;
}

template <int kBits>
constexpr Floats<kBits> kFloats = make_floats<kBits>();

struct SignMasks {
  alignas(16) uint32_t mask[16][4];
};

constexpr SignMasks make_sign_masks() {
  SignMasks masks = {};
  for (int nibble = 0; nibble < 16; ++nibble)
    for (int i = 0; i < 4; ++i) masks.mask[nibble][i] = nibble >> i & 1 ? 0x80000000u : 0;
  return masks;
}

constexpr SignMasks kSignMasks = make_sign_masks();

// Columns `column` to column + 3 of a row, a multiple of 4, without the row's scale.
template <int kBits>
PVQ_INLINE Quad quad_at(const uint8_t* row, int64_t cols, int64_t column) {
  if constexpr (kBits == 4) {
    // Assembled in a register: two stores and a load of both would wait for each other.
    int64_t pair[2];
    __builtin_memcpy(&pair[0], kFloats<4>.value[row[column / 2]], 8);
    __builtin_memcpy(&pair[1], kFloats<4>.value[row[column / 2 + 1]], 8);
    return reinterpret_cast<Quad>(QuadPairs{pair[0], pair[1]});
  } else {
    const Quad q = load(kFloats<kBits>.value[row[column / 4]]);
    if constexpr (kBits == 2) return q;
    const int nibble = row[cols / 4 + column / 8] >> (column & 4) & 15;
    QuadBits flip;
    __builtin_memcpy(&flip, kSignMasks.mask[nibble], sizeof flip);
    return reinterpret_cast<Quad>(reinterpret_cast<QuadBits>(q) ^ flip);
  }
}
