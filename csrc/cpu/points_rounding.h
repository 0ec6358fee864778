// The rounding of activations to points (points.h), in loops that compilers turn into vectors.
// Included inside the anonymous namespace of each instruction set's file; the order of all sums is
// fixed, so every set finds the same point.

constexpr int kMaxGroup = 256;
// value + kRound - kRound is `value` rounded to the nearest integer, ties to even, for magnitudes
// below 2^22: not every machine has vectors with such an instruction.
constexpr float kRound = 12582912.0f;
constexpr float kRemainderUnits = 1 << 23;
constexpr int kPartials = 16;

struct Rounding {
  int padded;  // dim, up to whole vectors; the places after dim are zero
  alignas(64) float magnitude[kMaxGroup], exact[kMaxGroup], rounded[kMaxGroup];
  alignas(64) int32_t key[kMaxGroup];
};

template <class T, class F>
inline T interleaved(int padded, F term) {
  T partial[kPartials] = {};
  for (int i = 0; i < padded; i += kPartials)
    for (int l = 0; l < kPartials; ++l) partial[l] += term(i + l);
  for (int width = kPartials / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) partial[l] += partial[l + width];
  return partial[0];
}

// The remainder of a place in the upper bits, so that keys order as remainders do, to 2^-23.
inline int32_t remainder_key(const Rounding& r, int i) {
  return static_cast<int32_t>((r.exact[i] - r.rounded[i]) * kRemainderUnits) * 256;
}

// Adds a pulse where the remainder is largest, the first of equals.
inline void add_pulse(Rounding& r, int dim) {
  int32_t best = INT32_MIN;
  for (int i = 0; i < dim; ++i) best = r.key[i] + (255 - i) > best ? r.key[i] + (255 - i) : best;
  const int place = 255 - (best & 255);
  r.rounded[place] += 1;
  r.key[place] = remainder_key(r, place);
}

// Takes a pulse from where the remainder is smallest, the first of equals.
inline void take_pulse(Rounding& r, int dim) {
  int32_t best = INT32_MAX;
  for (int i = 0; i < dim; ++i) {
    const int32_t key = r.rounded[i] > 0 ? r.key[i] + i : INT32_MAX;
    best = key < best ? key : best;
  }
  const int place = best & 255;
  r.rounded[place] -= 1;
  r.key[place] = remainder_key(r, place);
}

// The integers of sum `pulses` that are nearest to magnitude * unit.
inline void round_to_sum(Rounding& r, int dim, int pulses, double unit) {
  for (int i = 0; i < r.padded; ++i) {
    r.exact[i] = static_cast<float>(r.magnitude[i] * unit);
    r.rounded[i] = (r.exact[i] + kRound) - kRound;
  }
  for (int i = 0; i < r.padded; ++i) r.key[i] = remainder_key(r, i);
  const float sum = interleaved<float>(r.padded, [&](int i) { return r.rounded[i]; });  // exact
  int missing = pulses - static_cast<int>(sum);
  for (; missing > 0; --missing) add_pulse(r, dim);
  for (; missing < 0; ++missing) take_pulse(r, dim);
}

inline double best_multiple(const Rounding& r) {
  const auto product =
      interleaved<float>(r.padded, [&](int i) { return r.exact[i] * r.rounded[i]; });
  const auto square =
      interleaved<float>(r.padded, [&](int i) { return r.rounded[i] * r.rounded[i]; });
  return static_cast<double>(product) / static_cast<double>(square);
}

inline bool round_group(const float* x, int dim, int pulses, Rounding& r, int16_t* y,
                        uint16_t* amplitude) {
  for (int i = 0; i < dim; ++i) r.magnitude[i] = __builtin_fabsf(x[i]);
  const auto sum =
      interleaved<double>(r.padded, [&](int i) { return static_cast<double>(r.magnitude[i]); });
  if (!(sum <= __DBL_MAX__)) return false;  // NaN or infinity
  if (sum == 0) {
    for (int i = 0; i < dim; ++i) y[i] = 0;
    *amplitude = 0;
    return true;
  }
  double unit = pulses / sum;
  round_to_sum(r, dim, pulses, unit);
  unit /= best_multiple(r);
  round_to_sum(r, dim, pulses, unit);
  *amplitude = pvq::to_bfloat16(static_cast<float>(best_multiple(r) / unit));
  for (int i = 0; i < dim; ++i)
    y[i] = static_cast<int16_t>(x[i] < 0 ? -r.rounded[i] : r.rounded[i]);
  return true;
}

bool round_points(const float* x, int64_t count, int dim, int pulses, int16_t* y,
                  uint16_t* amplitude) {
  Rounding r = {};
  r.padded = (dim + kPartials - 1) / kPartials * kPartials;
  for (int64_t g = 0; g < count; ++g)
    if (!round_group(x + g * dim, dim, pulses, r, y + g * dim, amplitude + g)) return false;
  return true;
}
