// The rounding of activations to points (points.h), in loops that compilers turn into vectors.
// Included inside the anonymous namespace of each instruction set's file; the order of all sums is
// fixed, so every set finds the same point.

constexpr int kMaxGroup = 256;
// value + kRound - kRound is `value` rounded to the nearest integer, ties to even, for magnitudes
// below 2^22: not every machine has vectors with such an instruction.
constexpr float kRound = 12582912.0f;
constexpr float kRemainderUnits = 1 << 21;
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

// The remainder of a place, to 2^-21 and at most 3 either way, in the upper bits: with the place in
// the lower eight, one comparison of integers finds the extreme, and the first place of equals.
inline int32_t remainder_key(const Rounding& r, int i) {
  const float remainder = r.exact[i] - r.rounded[i];
  const float bounded = remainder < -3 ? -3 : remainder > 3 ? 3 : remainder;
  return static_cast<int32_t>(bounded * kRemainderUnits) * 256;
}

inline int32_t key_to_add(const Rounding& r, int i) { return remainder_key(r, i) + (255 - i); }

// Without a pulse to give, a place comes last.
inline int32_t key_to_take(const Rounding& r, int i) {
  return r.rounded[i] > 0 ? remainder_key(r, i) + i : INT32_MAX;
}

// Adds pulses where the remainders are largest, one after the other.
inline void add_pulses(Rounding& r, int dim, int count) {
  for (int i = 0; i < r.padded; ++i) r.key[i] = i < dim ? key_to_add(r, i) : INT32_MIN;
  for (; count > 0; --count) {
    int32_t best = INT32_MIN;
    for (int i = 0; i < r.padded; ++i) best = r.key[i] > best ? r.key[i] : best;
    const int place = 255 - (best & 255);
    r.rounded[place] += 1;
    r.key[place] = key_to_add(r, place);
  }
}

// Takes pulses from where the remainders are smallest, one after the other.
inline void take_pulses(Rounding& r, int count) {
  for (int i = 0; i < r.padded; ++i) r.key[i] = key_to_take(r, i);
  for (; count > 0; --count) {
    int32_t best = INT32_MAX;
    for (int i = 0; i < r.padded; ++i) best = r.key[i] < best ? r.key[i] : best;
    const int place = best & 255;
    r.rounded[place] -= 1;
    r.key[place] = key_to_take(r, place);
  }
}

// The integers of sum `pulses` that are nearest to magnitude * unit.
inline void round_to_sum(Rounding& r, int dim, int pulses, double unit) {
  for (int i = 0; i < r.padded; ++i) {
    r.exact[i] = static_cast<float>(r.magnitude[i] * unit);
    r.rounded[i] = (r.exact[i] + kRound) - kRound;
  }
  const float sum = interleaved<float>(r.padded, [&](int i) { return r.rounded[i]; });  // exact
  const int missing = pulses - static_cast<int>(sum);
  if (missing > 0) add_pulses(r, dim, missing);
  if (missing < 0) take_pulses(r, -missing);
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
