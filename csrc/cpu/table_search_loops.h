// The loops behind TableSearch, written once over native vectors: Float of kWidth floats and Int of
// as many int32, typedefs with __attribute__((vector_size)). Included inside the anonymous
// namespace of each instruction set's file, so that the linker never merges two sets' instances.

#define PVQ_INLINE inline __attribute__((always_inline))

constexpr int kWidth = sizeof(Float) / sizeof(float);

template <int kBits>
struct Search {
  using Code = pvq::TableCode<kBits>;
  using Key = pvq::TableKey<kBits>;
  static constexpr int kDim = Code::kDim;
  static constexpr int kLeaders = pvq::table_leaders<kBits>();
  static constexpr int kGroups = pvq::kSearchGroups;
  static constexpr int kVectors = kGroups / kWidth;
  // Vectors that one pass over the leaders serves: they share the loads of the leaders.
  static constexpr int kTogether = 2;

  struct Leader {
    float value[kDim];
    float square;  // of the norm, an exact integer
  };
  struct Leaders {
    Leader leader[kLeaders];
  };

  static constexpr Leaders make_leaders() {
    Leaders result = {};
    for (int k = 0; k < kLeaders; ++k) {
      int square = 0;
      for (int i = 0; i < kDim; ++i) {
        const int value = pvq::table_magnitude<kBits>(Code::kLeaders[k][i]);
        result.leader[k].value[i] = float(value);
        square += value * value;
      }
      result.leader[k].square = float(square);
    }
    return result;
  }
  static constexpr Leaders kLeader = make_leaders();

  // Vectors of the group's coordinate i, as `sort` lays them out.
  static PVQ_INLINE Float load(const float* p) {
    Float v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static PVQ_INLINE void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof v); }

  static PVQ_INLINE Float magnitude(Float v) {
    return reinterpret_cast<Float>(reinterpret_cast<Int>(v) & 0x7FFFFFFF);
  }

  // Groups [0, count) of a block, count <= 32, coordinate by coordinate, zeros behind.
  static PVQ_INLINE void transpose(const float* w, int count, float (*block)[kGroups]) {
    for (int g = 0; g < count; ++g)
      for (int i = 0; i < kDim; ++i) block[i][g] = w[g * kDim + i];
    for (int g = count; g < kGroups; ++g)
      for (int i = 0; i < kDim; ++i) block[i][g] = 0;
  }

  static PVQ_INLINE int groups_in_block(int64_t groups, int64_t first) {
    return groups - first < kGroups ? int(groups - first) : kGroups;
  }

  static PVQ_INLINE void order(Float& high, Float& low) {
    const Float a = high, b = low;
    high = a > b ? a : b;
    low = a > b ? b : a;
  }

  static void sort(const float* w, int64_t groups, const float* factors, float* sorted) {
    alignas(64) float block[kDim][kGroups];
    for (int64_t first = 0; first < groups; first += kGroups, sorted += kDim * kGroups) {
      transpose(w + first * kDim, groups_in_block(groups, first), block);
      for (int v = 0; v < kGroups; v += kWidth) {
        Float m[kDim];
        for (int i = 0; i < kDim; ++i)
          m[i] = magnitude(load(block[i] + v)) * factors[0] * factors[1];
        if constexpr (kDim == 4) {
          order(m[0], m[1]);
          order(m[2], m[3]);
          order(m[0], m[2]);
          order(m[1], m[3]);
          order(m[1], m[2]);
        } else {
          order(m[0], m[1]);
        }
        for (int i = 0; i < kDim; ++i) store(sorted + i * kGroups + v, m[i]);
      }
    }
  }

  static double total(const Float (&partial)[kVectors]) {
    double sum[kGroups];
    for (int g = 0; g < kGroups; ++g) sum[g] = partial[g / kWidth][g % kWidth];
    for (int width = kGroups / 2; width >= 1; width /= 2)
      for (int g = 0; g < width; ++g) sum[g] += sum[g + width];
    return sum[0];
  }

  static double energy(const float* sorted, int64_t groups) {
    Float sum[kVectors] = {};
    for (int64_t first = 0; first < groups; first += kGroups, sorted += kDim * kGroups)
      for (int v = 0; v < kVectors; ++v)
        for (int i = 0; i < kDim; ++i) {
          const Float m = load(sorted + i * kGroups + v * kWidth);
          sum[v] += m * m;
        }
    return total(sum);
  }

  // Half the squared norm of each leader, times the scale: |m - s y|^2 is least where
  // <m, y> - s |y|^2 / 2 is greatest.
  struct Offsets {
    float value[kLeaders];
    explicit Offsets(float scale) {
      for (int k = 0; k < kLeaders; ++k) value[k] = 0.5f * scale * kLeader.leader[k].square;
    }
  };

  // For kTogether vectors from sorted[.][v] on: calls better(n, mask, k, score, offset) wherever
  // leader k is nearer than those before it in the lanes of `mask` of vector n.
  template <class Better>
  static PVQ_INLINE void visit_leaders(const float* sorted, int v, const Offsets& offsets,
                                       Better better) {
    Float m[kTogether][kDim];
    for (int n = 0; n < kTogether; ++n)
      for (int i = 0; i < kDim; ++i) m[n][i] = load(sorted + i * kGroups + (v + n) * kWidth);
    for (int k = 0; k < kLeaders; ++k) {
      const Leader& leader = kLeader.leader[k];
      for (int n = 0; n < kTogether; ++n) {
        Float score = m[n][0] * leader.value[0];
        for (int i = 1; i < kDim; ++i) score += m[n][i] * leader.value[i];
        better(n, k, score - offsets.value[k], offsets.value[k]);
      }
    }
  }

  static pvq::TableFit fit(const float* sorted, int64_t groups, float scale) {
    const Offsets offsets(scale);
    Int lane;
    for (int l = 0; l < kWidth; ++l) lane[l] = l;
    Float product[kVectors] = {}, offset_sum[kVectors] = {};
    for (int64_t first = 0; first < groups; first += kGroups, sorted += kDim * kGroups) {
      const int count = groups_in_block(groups, first);
      for (int v = 0; v < kVectors; v += kTogether) {
        Float best[kTogether], offset[kTogether];
        for (int n = 0; n < kTogether; ++n) {
          best[n] = Float{} - __builtin_inff();
          offset[n] = Float{};
        }
        visit_leaders(sorted, v, offsets,
                      [&](int n, int, Float score, float leader_offset)
                          __attribute__((always_inline)) {
                            const Int nearer = score > best[n];
                            best[n] = nearer ? score : best[n];
                            offset[n] = nearer ? Float{} + leader_offset : offset[n];
                          });
        for (int n = 0; n < kTogether; ++n) {
          const Int present = lane < count - (v + n) * kWidth;
          product[v + n] += present ? best[n] + offset[n] : Float{};
          offset_sum[v + n] += present ? offset[n] : Float{};
        }
      }
    }
    return {total(product), total(offset_sum) / (0.5 * double(scale))};
  }

  static void name(const float* w, const float* sorted, int64_t groups, float scale,
                   const uint8_t* names, uint8_t* code) {
    const Offsets offsets(scale);
    alignas(64) float block[kDim][kGroups];
    alignas(64) int32_t keys[kGroups];
    for (int64_t first = 0; first < groups; first += kGroups, sorted += kDim * kGroups) {
      const int count = groups_in_block(groups, first);
      transpose(w + first * kDim, count, block);
      for (int v = 0; v < kVectors; v += kTogether) {
        Float best[kTogether];
        Int key[kTogether] = {};
        for (int n = 0; n < kTogether; ++n) best[n] = Float{} - __builtin_inff();
        visit_leaders(sorted, v, offsets,
                      [&](int n, int k, Float score, float) __attribute__((always_inline)) {
                        const Int nearer = score > best[n];
                        best[n] = nearer ? score : best[n];
                        key[n] = nearer ? Int{} + k : key[n];
                      });
        for (int n = 0; n < kTogether; ++n) {
          const Int named = (key[n] << Key::kOrderBits | order_bits(block, (v + n) * kWidth))
                                << Key::kSignBits |
                            sign_bits(block, (v + n) * kWidth);
          __builtin_memcpy(keys + (v + n) * kWidth, &named, sizeof named);
        }
      }
      for (int g = 0; g < count; ++g) code[first + g] = names[keys[g]];
    }
  }

  static PVQ_INLINE Int order_bits(const float (*block)[kGroups], int at) {
    Int bits = {};
    int bit = 0;
    for (int i = 0; i < kDim; ++i)
      for (int j = i + 1; j < kDim; ++j, ++bit) {
        const Int less = magnitude(load(block[i] + at)) < magnitude(load(block[j] + at));
        bits |= less & (1 << bit);
      }
    return bits;
  }

  static PVQ_INLINE Int sign_bits(const float (*block)[kGroups], int at) {
    Int bits = {};
    for (int i = 0; i < Key::kSignBits; ++i) {
      const Int negative = load(block[i] + at) < Float{};
      bits |= negative & (1 << i);
    }
    return bits;
  }

  static constexpr pvq::TableSearch table() { return {&sort, &energy, &fit, &name}; }
};
