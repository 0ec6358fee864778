// The loops behind OverlapKernels, written once over native vectors: Float, a typedef with
// __attribute__((vector_size)), `minimum` of two, `absolute` and `multiply_add`. Included inside
// the anonymous namespace of each instruction set's file, so that the linker never merges two sets'
// instances.

#define PVQ_INLINE inline __attribute__((always_inline))

constexpr int kLanes = pvq::kOverlapLanes;
constexpr int kWidth = sizeof(Float) / sizeof(float);
// States whose minima stand in registers together: they share the loads of the paths.
constexpr int kTogether = 4;

PVQ_INLINE Float load(const float* p) {
  Float v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
PVQ_INLINE void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof v); }

void cross(const pvq::OverlapTrellis& t, const float* table, const float* weight, float* cross) {
  // Of the windows b that meet a: all, or those whose newest bits are the oldest ones of a.
  const int shared = t.reach() < t.window_bits ? t.window_bits - t.reach() : 0;
  const int count = t.rows() >> shared;
  for (int a = 0; a < t.rows(); ++a) {
    const int b = (a & ((1 << shared) - 1)) * count;
    float* out = cross + int64_t(a) * count;
    for (int i = 0; i < count; ++i) out[i] = 0;
    for (int d = 0; d < t.dim; ++d) {
      const float factor = 2 * weight[d] * table[d * t.rows() + a];
      const float* other = table + (t.dim + d) * t.rows() + b;
      for (int i = 0; i < count; ++i) out[i] += factor * other[i];
    }
  }
}

// first [rows][16] and second [rows][16], see overlap_search.h.
PVQ_INLINE void own_costs(const pvq::OverlapTrellis& t, const float* table, const float* weight,
                          const float* x, float* first, float* second) {
  for (int row = 0; row < t.rows(); ++row)
    for (int part = 0; part < kLanes; part += kWidth) {
      Float one = {}, other = {};
      for (int d = 0; d < t.dim; ++d) {
        const Float target = load(x + d * kLanes + part);
        const float t0 = table[d * t.rows() + row], t1 = table[(t.dim + d) * t.rows() + row];
        one = one + weight[d] * ((target - t0) * (target - t0));
        other = other + weight[d] * t1 * (t1 - 2.0f * target);
      }
      store(first + row * kLanes + part, one);
      store(second + row * kLanes + part, other);
    }
}

void step(const pvq::OverlapTrellis& t, const float* table, const float* weight, const float* cross,
          const float* x, const float* before, float* after, float* scratch) {
  float *first = scratch, *second = scratch + t.rows() * kLanes;
  own_costs(t, table, weight, x, first, second);
  const int symbols = t.symbols(), kept = t.state_bits() - t.step_bits;
  for (int k = 0; k < 1 << kept; ++k)  // what the states before and after have in common
    for (int part = 0; part < kLanes; part += kWidth) {
      Float path[256];
      for (int o = 0; o < symbols; ++o) {
        const int state = k << t.step_bits | o;
        path[o] = load(before + int64_t(state) * kLanes + part) +
                  load(second + (state & (t.rows() - 1)) * kLanes + part);
      }
      for (int h = 0; h < symbols; h += kTogether) {
        const float* between[kTogether];
        Float best[kTogether];
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) {
          between[j] = cross + pvq::cross_offset(t, (h + j) << kept | k);
          best[j] = path[0] + between[j][0];
        }
        for (int o = 1; o < symbols; ++o)
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) best[j] = minimum(path[o] + between[j][o], best[j]);
        for (int j = 0; j < kTogether; ++j) {
          const int state = (h + j) << kept | k;
          const int window = state << t.step_bits >> t.reach();
          store(after + int64_t(state) * kLanes + part,
                best[j] + load(first + window * kLanes + part));
        }
      }
    }
}

// Sums are over the weights in order, fused: each adds (weight u) u with u = |x - T1 - T0| -
// spread. Weights of one change no bit, and need not be multiplied with.
template <bool kWeighted>
void spread_paths(const pvq::OverlapTrellis& t, float spread, const float* table,
                  const float* weight, const float* x, const float* before, float* after,
                  float* scratch) {
  constexpr int dim = pvq::kSpreadDim;
  const int symbols = t.symbols(), kept = t.state_bits() - t.step_bits;
  for (int k = 0; k < 1 << kept; ++k)
    for (int part = 0; part < kLanes; part += kWidth) {
      for (int o = 0; o < symbols; ++o)
        for (int d = 0; d < dim; ++d) {
          const int window = (k << t.step_bits | o) & (t.rows() - 1);
          store(scratch + (o * dim + d) * kWidth,
                load(x + d * kLanes + part) - table[(dim + d) * t.rows() + window]);
        }
      const float* from = before + (int64_t(k) << t.step_bits) * kLanes + part;
      for (int h = 0; h < symbols; h += kTogether) {
        Float best[kTogether];
        int own[kTogether];
        for (int j = 0; j < kTogether; ++j)
          own[j] = ((h + j) << kept | k) << t.step_bits >> t.reach();
        for (int o = 0; o < symbols; ++o) {
          const Float path = load(from + int64_t(o) * kLanes);
          Float cost[kTogether];
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) cost[j] = path;
#pragma GCC unroll 4
          for (int d = 0; d < dim; ++d) {
            const Float rest = load(scratch + (o * dim + d) * kWidth);
#pragma GCC unroll 4
            for (int j = 0; j < kTogether; ++j) {
              const Float u = absolute(rest - table[d * t.rows() + own[j]]) - spread;
              cost[j] = multiply_add(kWeighted ? weight[d] * u : u, u, cost[j]);
            }
          }
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j)
            best[j] = o == 0 ? cost[j] : minimum(cost[j], best[j]);
        }
        for (int j = 0; j < kTogether; ++j)
          store(after + int64_t((h + j) << kept | k) * kLanes + part, best[j]);
      }
    }
}

void spread_step(const pvq::OverlapTrellis& t, float spread, const float* table,
                 const float* weight, const float* x, const float* before, float* after,
                 float* scratch) {
  bool weighted = false;
  for (int d = 0; d < pvq::kSpreadDim; ++d) weighted |= weight[d] != 1;
  (weighted ? spread_paths<true> : spread_paths<false>)(t, spread, table, weight, x, before, after,
                                                        scratch);
}
