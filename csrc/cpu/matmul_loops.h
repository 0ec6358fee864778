// The loops behind MatmulKernels, written once over a vector type V of 16 floats:
//
//   V::zero()  V::load(p)  v.store(p)  V::broadcast(p)     p: const float*, any alignment
//   a + b,  a * b,  V::fma(a, b, c) = a * b + c
//   V::Words, V::load_words(p)      16 int32
//   V::nibble(words, t)             bits 4t .. 4t+3 of each word, two's complement, as floats
//   V::bytes(p)                     16 int8 as floats
//   V::kVectors, V::kTokens         the block that `multiply` keeps in registers
//   V::kDirectTokens, V::kSums      the most tokens of `direct`, the sums that it may keep going
//
// Included inside the anonymous namespace of each instruction set's file, so that the linker never
// merges two sets' instances.

#define PVQ_INLINE inline __attribute__((always_inline))
#define PVQ_LAMBDA_INLINE __attribute__((always_inline))

template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};

// f(0), ..., f(N - 1) with constants, so that an array indexed by them lives in registers.
template <int N, int I = 0, class F>
PVQ_INLINE void unroll(const F& f) {
  if constexpr (I < N) {
    f(Constant<I>{});
    unroll<N, I + 1>(f);
  }
}

template <class V>
struct Nibbles {
  static constexpr int kRun = 8;        // consecutive columns that come out of one load
  static constexpr int kLinePair = 16;  // columns in two cache lines
  const int32_t* words;

  template <class Use>
  PVQ_INLINE void run(int64_t column, Use use) const {
    const typename V::Words w = V::load_words(words + column / 8 * 16);
    unroll<8>([&](auto t) PVQ_LAMBDA_INLINE { use(t, V::nibble(w, t)); });
  }
  PVQ_INLINE V at(int64_t column) const {
    return V::nibble(V::load_words(words + column / 8 * 16), static_cast<int>(column % 8));
  }
  PVQ_INLINE void prefetch(int64_t column) const { __builtin_prefetch(words + column / 8 * 16); }
};

template <class V>
struct Bytes {
  static constexpr int kRun = 4;
  static constexpr int kLinePair = 8;
  const int8_t* bytes;

  template <class Use>
  PVQ_INLINE void run(int64_t column, Use use) const {
    unroll<4>([&](auto t) PVQ_LAMBDA_INLINE { use(t, V::bytes(bytes + (column + t) * 16)); });
  }
  PVQ_INLINE V at(int64_t column) const { return V::bytes(bytes + column * 16); }
  PVQ_INLINE void prefetch(int64_t column) const { __builtin_prefetch(bytes + column * 16); }
};

// Calls use(i, t, integers) for the columns first + i + t of one group, i + t < dim, t < kRun.
template <class Plane, class Use>
PVQ_INLINE void visit_group(const Plane& plane, int64_t first, int dim, Use use) {
  if (dim % Plane::kRun == 0) {
    for (int i = 0; i < dim; i += Plane::kRun)
      plane.run(first + i, [&](auto t, auto integers) PVQ_LAMBDA_INLINE { use(i, t, integers); });
  } else {
    for (int i = 0; i < dim; ++i) use(i, Constant<0>{}, plane.at(first + i));
  }
}

// Asks for the data of a later group, so that a stream crosses from one page to the next without a
// stop: planes that no cache holds are read one and a half times as fast. The processor fetches
// lines in pairs by itself.
template <class Plane>
PVQ_INLINE void prefetch_group(const Plane& plane, const float* scale, int dim, int64_t group) {
  for (int i = 0; i < dim; i += Plane::kLinePair) plane.prefetch(group * dim + i);
  __builtin_prefetch(scale + group * 16);
}

template <class V, class Plane>
PVQ_INLINE void unpack(const Plane& plane, const float* scale, int dim, int64_t begin, int64_t end,
                       float* tile, int64_t stride) {
  for (int64_t g = begin; g < end; ++g) {
    prefetch_group(plane, scale, dim, g + (end - begin));
    const V s = V::load(scale + g * 16);
    float* group = tile + (g - begin) * dim * stride;
    visit_group(plane, g * dim, dim, [&](int i, auto t, V integers) PVQ_LAMBDA_INLINE {
      (s * integers).store(group + (i + t) * stride);
    });
  }
}

constexpr int64_t kBlockColumns = 512;  // one page of 4-bit planes

// Several chains of sums a token while tokens are few: one alone would bound the speed. Groups add
// up to a block, blocks to the whole, because three short sums round less than a long one.
template <class V, int kTokens, class Plane>
PVQ_INLINE void direct(const Plane& plane, const float* scale, int dim, int64_t groups,
                       const float* a, float* c, int64_t stride) {
  constexpr int kChains = kTokens * 4 <= V::kSums ? 4 : kTokens * 2 <= V::kSums ? 2 : 1;
  const int64_t block = 1 + kBlockColumns / dim;
  unroll<kTokens>([&](auto token) PVQ_LAMBDA_INLINE { V::zero().store(c + token * stride); });
  for (int64_t begin = 0; begin < groups; begin += block) {
    const int64_t end = begin + block < groups ? begin + block : groups;
    V sum[kTokens];
    unroll<kTokens>([&](auto token) PVQ_LAMBDA_INLINE { sum[token] = V::zero(); });
    for (int64_t g = begin; g < end; ++g) {
      prefetch_group(plane, scale, dim, g + block);
      V chain[kChains * kTokens];
      unroll<kChains * kTokens>([&](auto n) PVQ_LAMBDA_INLINE { chain[n] = V::zero(); });
      visit_group(plane, g * dim, dim, [&](int i, auto t, V integers) PVQ_LAMBDA_INLINE {
        const float* x = a + (g * dim + i + t) * kTokens;
        unroll<kTokens>([&](auto token) PVQ_LAMBDA_INLINE {
          V& s = chain[t % kChains * kTokens + token];
          s = V::fma(integers, V::broadcast(x + token), s);
        });
      });
      const V s = V::load(scale + g * 16);
      unroll<kTokens>([&](auto token) PVQ_LAMBDA_INLINE {
        V total = chain[token];
        unroll<kChains - 1>(
            [&](auto n) PVQ_LAMBDA_INLINE { total = total + chain[(n + 1) * kTokens + token]; });
        sum[token] = V::fma(s, total, sum[token]);
      });
    }
    unroll<kTokens>([&](auto token) PVQ_LAMBDA_INLINE {
      float* out = c + token * stride;
      (V::load(out) + sum[token]).store(out);
    });
  }
}

// tokens is a template argument inside: walk down to the right instance.
template <class V, class Plane, int kTokens = V::kDirectTokens>
void direct_any(const Plane& plane, const float* scale, int dim, int64_t groups, const float* a,
                int tokens, float* c, int64_t stride) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens)
      return direct_any<V, Plane, kTokens - 1>(plane, scale, dim, groups, a, tokens, c, stride);
  }
  direct<V, kTokens>(plane, scale, dim, groups, a, c, stride);
}

// A tile is summed from zero and then added to c: two short sums round less than a long one.
template <class V, int kVectors, int kTokens>
void multiply_block(const float* tile, int64_t width, const float* a, int64_t depth, float* c) {
  V sum[kTokens * kVectors];
  unroll<kTokens * kVectors>([&](auto n) PVQ_LAMBDA_INLINE { sum[n] = V::zero(); });
  for (int64_t i = 0; i < depth; ++i) {
    V w[kVectors];
    unroll<kVectors>([&](auto v) PVQ_LAMBDA_INLINE { w[v] = V::load(tile + i * width + v * 16); });
    unroll<kTokens>([&](auto t) PVQ_LAMBDA_INLINE {
      const V x = V::broadcast(a + i * kTokens + t);
      unroll<kVectors>([&](auto v) PVQ_LAMBDA_INLINE {
        V& s = sum[t * kVectors + v];
        s = V::fma(w[v], x, s);
      });
    });
  }
  unroll<kTokens * kVectors>([&](auto n) PVQ_LAMBDA_INLINE {
    float* out = c + n / kVectors * width + n % kVectors * 16;
    (V::load(out) + sum[n]).store(out);
  });
}

template <class V, int kTokens>
void multiply_width(const float* tile, int64_t width, const float* a, int64_t depth, float* c) {
  int64_t l = 0;
  for (; l + V::kVectors * 16 <= width; l += V::kVectors * 16)
    multiply_block<V, V::kVectors, kTokens>(tile + l, width, a, depth, c + l);
  for (; l < width; l += 16) multiply_block<V, 1, kTokens>(tile + l, width, a, depth, c + l);
}

template <class V, int kTokens = V::kTokens>
void multiply(const float* tile, int64_t width, const float* a, int64_t depth, int tokens,
              float* c) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens) return multiply<V, kTokens - 1>(tile, width, a, depth, tokens, c);
  }
  multiply_width<V, kTokens>(tile, width, a, depth, c);
}

template <class V>
struct Loops {
  static void unpack4(const int32_t* words, const float* scale, int dim, int64_t begin, int64_t end,
                      float* tile, int64_t stride) {
    unpack<V>(Nibbles<V>{words}, scale, dim, begin, end, tile, stride);
  }
  static void unpack8(const int8_t* bytes, const float* scale, int dim, int64_t begin, int64_t end,
                      float* tile, int64_t stride) {
    unpack<V>(Bytes<V>{bytes}, scale, dim, begin, end, tile, stride);
  }
  static void direct4(const int32_t* words, const float* scale, int dim, int64_t groups,
                      const float* a, int tokens, float* c, int64_t stride) {
    direct_any<V>(Nibbles<V>{words}, scale, dim, groups, a, tokens, c, stride);
  }
  static void direct8(const int8_t* bytes, const float* scale, int dim, int64_t groups,
                      const float* a, int tokens, float* c, int64_t stride) {
    direct_any<V>(Bytes<V>{bytes}, scale, dim, groups, a, tokens, c, stride);
  }
  static constexpr pvq::MatmulKernels table() {
    return {V::kTokens, V::kDirectTokens, &multiply<V>, &unpack4, &unpack8, &direct4, &direct8};
  }
};
