#include "cpu/overlap_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa.h"

namespace pvq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

const OverlapKernels& overlap_kernels() {
#ifdef PVQ_X86
  return for_isa(overlap_kernels_portable, overlap_kernels_avx2, overlap_kernels_avx512);
#else
  return overlap_kernels_portable;
#endif
}

OverlapSearch::OverlapSearch(const OverlapTrellis& trellis, const float* table, float spread,
                             const float* weight, int64_t groups)
    : trellis_(trellis),
      kernels_(overlap_kernels()),
      spread_(spread),
      groups_(groups),
      table_(2 * trellis.dim * trellis.rows()),
      weight_(groups * trellis.dim, 1.0f),
      cross_(trellis.spread ? 0 : int64_t{1} << cross_bits(trellis)),
      scratch_((trellis.spread ? trellis.symbols() * trellis.dim : 2 * trellis.rows()) *
               kOverlapLanes),
      longest_(std::max<int64_t>(groups, 2 * kOverlapSeam)),
      input_(longest_ * trellis.dim * kOverlapLanes),
      costs_(make_buffer<float>((longest_ + 1) * trellis.states() * kOverlapLanes)),
      found_(kOverlapLanes * longest_) {
  const int rows = trellis.rows(), columns = 2 * trellis.dim;
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < columns; ++i) table_[i * rows + row] = table[row * columns + i];
  if (weight) std::copy_n(weight, weight_.size(), weight_.begin());
}

const float* OverlapSearch::cross_of(int64_t group) {
  const int dim = trellis_.dim;
  const float* weight = weight_.data() + group * dim;
  if (crossed_ < 0 || !std::equal(weight, weight + dim, weight_.data() + crossed_ * dim))
    kernels_.cross(trellis_, table_.data(), weight, cross_.data());
  crossed_ = group;
  return cross_.data();
}

float OverlapSearch::spread_cost(float cost, int64_t i, int lane, const float* weight, int a,
                                 int b) const {
  const int dim = trellis_.dim, rows = trellis_.rows();
  for (int d = 0; d < dim; ++d) {
    const float rest = input_[(i * dim + d) * kOverlapLanes + lane] - table_[(dim + d) * rows + b];
    const float u = std::abs(rest - table_[d * rows + a]) - spread_;
    cost = std::fma(weight[d] * u, u, cost);
  }
  return cost;
}

void OverlapSearch::search(const float* const* x, int lanes, int64_t from, int64_t count,
                           int* start, const int* end, float* cost) {
  const int dim = trellis_.dim, states = trellis_.states(), symbols = trellis_.symbols();
  for (int64_t i = 0; i < count; ++i)
    for (int d = 0; d < dim; ++d)
      for (int lane = 0; lane < kOverlapLanes; ++lane)
        input_[(i * dim + d) * kOverlapLanes + lane] =
            lane < lanes ? x[lane][(from + i) % groups_ * dim + d] : 0.0f;
  for (int lane = 0; lane < kOverlapLanes; ++lane) {
    const int only = lane < lanes ? start[lane] : 0;
    float* begin = costs(0) + lane;
    for (int state = 0; state < states; ++state)
      begin[state * kOverlapLanes] = only == kFreeState || only == state ? 0.0f : kInfinity;
  }
  const auto group = [&](int64_t i) { return (from + i) % groups_; };
  for (int64_t i = 0; i < count; ++i) {
    const float* weight = weight_.data() + group(i) * dim;
    const float* target = input_.data() + i * dim * kOverlapLanes;
    if (trellis_.spread)
      kernels_.spread_step(trellis_, spread_, table_.data(), weight, target, costs(i), costs(i + 1),
                           scratch_.data());
    else
      kernels_.step(trellis_, table_.data(), weight, cross_of(group(i)), target, costs(i),
                    costs(i + 1), scratch_.data());
  }

  std::vector<int> state(lanes);
  for (int lane = 0; lane < lanes; ++lane) {
    const float* last = costs(count) + lane;
    state[lane] = end[lane];
    if (end[lane] == kFreeState) {
      state[lane] = 0;
      for (int n = 1; n < states; ++n)
        if (last[n * kOverlapLanes] < last[state[lane] * kOverlapLanes]) state[lane] = n;
    }
    cost[lane] = last[state[lane] * kOverlapLanes];
  }
  // The way back: the comparisons that `step` made, for one state each.
  const int mask = (1 << (trellis_.state_bits() - trellis_.step_bits)) - 1;
  for (int64_t i = count - 1; i >= 0; --i) {
    const float* between = trellis_.spread ? nullptr : cross_of(group(i));
    const float* weight = weight_.data() + group(i) * dim;
    for (int lane = 0; lane < lanes; ++lane) {
      const int n = state[lane], before = (n & mask) << trellis_.step_bits;
      const float* row = between ? between + cross_offset(trellis_, n) : nullptr;
      const int own = n << trellis_.step_bits >> trellis_.reach();
      const float* target = input_.data() + i * dim * kOverlapLanes + lane;
      float least = kInfinity;
      int best = 0;
      for (int o = 0; o < symbols; ++o) {
        const int window = (before | o) & (trellis_.rows() - 1);
        float second = 0;
        for (int d = 0; d < dim && row; ++d) {
          const float point = table_[(dim + d) * trellis_.rows() + window];
          second += weight[d] * point * (point - 2.0f * target[d * kOverlapLanes]);
        }
        const float from = costs(i)[(before | o) * kOverlapLanes + lane];
        const float path =
            row ? from + second + row[o] : spread_cost(from, i, lane, weight, own, window);
        if (path < least) {
          least = path;
          best = o;
        }
      }
      found_[lane * longest_ + i] = uint8_t(n >> (trellis_.state_bits() - trellis_.step_bits));
      state[lane] = before | best;
    }
  }
  std::copy_n(state.begin(), lanes, start);
}

void OverlapSearch::open(const float* const* x, int lanes, int* start, const int* end,
                         uint8_t* const* symbol, float* cost) {
  search(x, lanes, 0, groups_, start, end, cost);
  for (int lane = 0; lane < lanes; ++lane)
    std::copy_n(found_.data() + lane * longest_, groups_, symbol[lane]);
}

void OverlapSearch::ring(const float* const* x, int lanes, int* start, uint8_t* const* symbol,
                         float* cost) {
  int free[kOverlapLanes], seam[kOverlapLanes];
  std::fill_n(free, kOverlapLanes, kFreeState);
  std::fill_n(seam, kOverlapLanes, kFreeState);
  // A short ring is gone around more than once.
  const int64_t from = (groups_ - kOverlapSeam % groups_) % groups_;
  search(x, lanes, from, 2 * kOverlapSeam, seam, free, cost);
  for (int lane = 0; lane < lanes; ++lane) {  // the state after kOverlapSeam groups
    auto word = uint32_t(seam[lane]);
    for (int64_t i = 0; i < kOverlapSeam; ++i)
      word = (word | uint32_t(found_[lane * longest_ + i]) << trellis_.state_bits()) >>
             trellis_.step_bits;
    seam[lane] = int(word);
  }
  std::copy_n(seam, lanes, start);
  open(x, lanes, start, seam, symbol, cost);
}

}  // namespace pvq
