#include "cpu/overlap_beam.h"

#include <algorithm>
#include <limits>

namespace pvq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

OverlapBeam::OverlapBeam(const OverlapTrellis& trellis, const float* table, const float* weight,
                         int64_t groups, int beam)
    : trellis_{trellis, table},
      weight_(weight),
      groups_(groups),
      beam_(std::min(beam, trellis.states())),
      state_(beam_),
      next_state_(beam_),
      cost_(beam_),
      next_cost_(beam_),
      first_(beam_ + 1),
      residual_(int64_t{beam_} * trellis.dim),
      candidate_(int64_t{beam_} * trellis.symbols()) {
  const int rest = trellis.window_bits - trellis.step_bits;
  own_.reserve(int64_t{trellis.rows()} * trellis.dim);
  for (int newest = 0; newest < 1 << rest; ++newest)
    for (int d = 0; d < trellis.dim; ++d)
      for (int s = 0; s < trellis.symbols(); ++s)
        own_.push_back(trellis_.point(s << rest | newest, 0)[d]);
}

void OverlapBeam::find_candidates(int k, const float* weight, SymbolRange symbols,
                                  float* candidate) {
  // The vectors of this loop are all new symbols. The operations are those of
  // BeamTrellis::distance.
  const int dim = trellis_.trellis.dim, all = trellis_.trellis.symbols();
  const int newest = trellis_.newest_of(trellis_.old_of(state_[first_[k]]));
  const float* own = &own_[int64_t{newest} * dim * all + symbols.begin];
  std::fill_n(candidate, symbols.count, kInfinity);
  for (int p = first_[k]; p < first_[k + 1]; ++p) {
    float sum[256] = {};
    for (int d = 0; d < dim; ++d) {
      const float residual = residual_[p * dim + d], factor = weight ? weight[d] : 1.0f;
      for (int s = 0; s < symbols.count; ++s) {
        const float error = residual - own[d * all + s];
        sum[s] += factor * (error * error);
      }
    }
    for (int s = 0; s < symbols.count; ++s) {
      const float path = cost_[p] + sum[s];
      candidate[s] = path < candidate[s] ? path : candidate[s];
    }
  }
}

void OverlapBeam::keep(int olds, SymbolRange symbols) {
  const int64_t candidates = int64_t{olds} * symbols.count;
  const auto at = [&](int64_t c) {
    return Candidate{symbols.begin + int(c % symbols.count), int(c / symbols.count),
                     cost_key(candidate_[c])};
  };
  kept_.clear();
  if (candidates <= beam_) {
    for (int64_t c = 0; c < candidates; ++c) kept_.push_back(at(c));
    std::sort(kept_.begin(), kept_.end());
    return;
  }
  // By the first bits of the keys, then exactly among those that these leave open.
  constexpr int kBits = 12, kShift = 32 - kBits;
  int64_t count[1 << kBits] = {};
  for (int64_t c = 0; c < candidates; ++c) ++count[cost_key(candidate_[c]) >> kShift];
  int64_t wanted = beam_;
  uint32_t digit = 0;
  for (; wanted > count[digit]; ++digit) wanted -= count[digit];
  close_.clear();
  for (int64_t c = 0; c < candidates; ++c) {
    const uint32_t own = cost_key(candidate_[c]) >> kShift;
    if (own <= digit) (own < digit ? kept_ : close_).push_back(at(c));
  }
  std::nth_element(close_.begin(), close_.begin() + (wanted - 1), close_.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return a.key != b.key ? a.key < b.key : a < b;
                   });
  kept_.insert(kept_.end(), close_.begin(), close_.begin() + wanted);
  std::sort(kept_.begin(), kept_.end());
}

void OverlapBeam::step(const float* x, const float* weight, SymbolRange symbols, uint32_t* links) {
  const int dim = trellis_.trellis.dim;
  int olds = 0;
  for (int p = 0; p < count_; ++p) {
    if (p == 0 || trellis_.old_of(state_[p]) != trellis_.old_of(state_[p - 1])) first_[olds++] = p;
    for (int d = 0; d < dim; ++d) residual_[p * dim + d] = trellis_.residual(x[d], state_[p], d);
  }
  first_[olds] = count_;
  for (int k = 0; k < olds; ++k)
    find_candidates(k, weight, symbols, &candidate_[int64_t{k} * symbols.count]);
  keep(olds, symbols);
  for (size_t i = 0; i < kept_.size(); ++i) {
    const auto [symbol, k, key] = kept_[i];
    const int old = trellis_.old_of(state_[first_[k]]);
    const float* own = trellis_.own_point(old, symbol);
    next_cost_[i] = kInfinity;
    int before = first_[k];
    for (int p = first_[k]; p < first_[k + 1]; ++p) {
      const float path = cost_[p] + trellis_.distance(&residual_[p * dim], 1, weight, own);
      if (path < next_cost_[i]) next_cost_[i] = path, before = p;
    }
    next_state_[i] = trellis_.next_state(old, symbol);
    links[i] = path_link(before, symbol);
  }
  count_ = int(kept_.size());
  state_.swap(next_state_);
  cost_.swap(next_cost_);
}

float OverlapBeam::search(const float* x, int64_t from, int64_t count, int64_t until, int* start,
                          int end, int* middle) {
  links_.resize(count * beam_);
  found_.resize(count);
  count_ = *start == kFreeState ? beam_ : 1;
  for (int p = 0; p < count_; ++p) {
    state_[p] = *start == kFreeState ? trellis_.free_state(p, count_) : *start;
    cost_[p] = 0;
  }
  std::vector<int> first_states(state_.begin(), state_.begin() + count_);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = (from + i) % groups_ * trellis_.trellis.dim;
    const int left = int(std::min<int64_t>(count - 1 - i, trellis_.trellis.state_bits()));
    step(x + column, weight_ ? weight_ + column : nullptr, trellis_.symbols(left, end),
         &links_[i * beam_]);
  }
  int path = 0;
  float cost = end == kFreeState ? cost_[0] : kInfinity;
  for (int p = 0; p < count_; ++p) {
    if (end == kFreeState ? cost_[p] < cost : state_[p] == end) path = p, cost = cost_[p];
  }
  for (int64_t i = count; i-- > 0;) {
    const uint32_t link = links_[i * beam_ + path];
    found_[i] = uint8_t(link_symbol(link));
    path = link_before(link);
  }
  *start = first_states[path];
  uint32_t word = uint32_t(*start);
  for (int64_t i = 0; i < until; ++i)
    word = uint32_t(trellis_.next_state(trellis_.old_of(int(word)), found_[i]));
  *middle = int(word);
  return cost;
}

float OverlapBeam::open(const float* x, int* start, int end, uint8_t* symbol) {
  int state = 0;
  const float cost = search(x, 0, groups_, 0, start, end, &state);
  std::copy_n(found_.begin(), groups_, symbol);
  return cost;
}

float OverlapBeam::ring(const float* x, int* start, uint8_t* symbol) {
  int free = kFreeState, seam = 0;
  search(x, (groups_ - kOverlapSeam % groups_) % groups_, 2 * kOverlapSeam, kOverlapSeam, &free,
         kFreeState, &seam);
  *start = seam;
  return open(x, start, seam, symbol);
}

}  // namespace pvq
