// The rounding of activations to points (points.h), in loops that compilers turn into vectors.
// Included inside the anonymous namespace of each instruction set's file.

// A group in arrays of one thread: the lanes of core/point_rounding.h.
class VectorLanes {
 public:
  struct alignas(64) Floats {
    float value[pvq::kMaxDim];
    float& operator[](int i) { return value[i]; }
    float operator[](int i) const { return value[i]; }
  };
  struct alignas(64) Integers {
    int32_t value[pvq::kMaxDim];
    int32_t& operator[](int i) { return value[i]; }
    int32_t operator[](int i) const { return value[i]; }
  };

  explicit VectorLanes(int dim) : dim_(dim), padded_(16) {
    while (padded_ < dim) padded_ *= 2;
  }

  int dim() const { return dim_; }
  int place(int slot) const { return slot; }
  bool any(bool condition) const { return condition; }

  template <class F>
  void each(F f) const {
    for (int i = 0; i < padded_; ++i) f(i);
  }
  template <class F>
  void at(int place, F f) const {
    f(place);
  }
  template <class F>
  void repeat(int count, F f) const {
    for (; count > 0; --count) f(true);
  }
  template <class T, class F>
  T sum(F term) const {
    alignas(64) T t[pvq::kMaxDim / 2];
    const int half = padded_ / 2;
    for (int i = 0; i < half; ++i) t[i] = term(i) + term(i + half);
    fold<pvq::kMaxDim / 4>(t, half);
    return t[0];
  }
  template <class F>
  int32_t largest(F f) const {
    int32_t best = INT32_MIN;
    for (int i = 0; i < padded_; ++i) best = f(i) > best ? f(i) : best;
    return best;
  }
  template <class F>
  int32_t smallest(F f) const {
    int32_t best = INT32_MAX;
    for (int i = 0; i < padded_; ++i) best = f(i) < best ? f(i) : best;
    return best;
  }

 private:
  // The tree over the first `count` terms, a power of two, from adding kWidth to kWidth on.
  template <int kWidth, class T>
  static void fold(T* t, int count) {
    if (count > kWidth)
      for (int i = 0; i < kWidth; ++i) t[i] += t[i + kWidth];
    if constexpr (kWidth > 1) fold<kWidth / 2>(t, count);
  }

  int dim_, padded_;
};

bool round_points(const float* x, int64_t count, int dim, int pulses, int16_t* y,
                  uint16_t* amplitude) {
  pvq::PointRounding<VectorLanes> rounding{VectorLanes(dim)};
  for (int i = 0; i < pvq::kMaxDim; ++i) rounding.magnitude[i] = 0;
  for (int64_t g = 0; g < count; ++g, x += dim, y += dim) {
    for (int i = 0; i < dim; ++i) rounding.magnitude[i] = __builtin_fabsf(x[i]);
    const auto result = rounding.round(pulses);
    if (!result.finite) return false;
    amplitude[g] = result.amplitude;
    for (int i = 0; i < dim; ++i)
      y[i] = static_cast<int16_t>(x[i] < 0 ? -rounding.rounded[i] : rounding.rounded[i]);
  }
  return true;
}
