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
      candidate_(int64_t{beam_} * trellis.symbols()),
      before_(candidate_.size()) {}

int64_t OverlapBeam::largest_kept(int64_t candidates, uint32_t* largest) {
  constexpr int kDigits[] = {11, 11, 10};
  uint32_t key = 0;
  int64_t wanted = beam_;
  int shift = 32;
  for (const int bits : kDigits) {
    int64_t count[1 << 11] = {};
    shift -= bits;
    const uint32_t mask = (1u << bits) - 1;
    for (int64_t c = 0; c < candidates; ++c) {
      const uint32_t other = cost_key(candidate_[c]);
      if (uint64_t{other} >> (shift + bits) == key) ++count[(other >> shift) & mask];
    }
    uint32_t digit = 0;
    for (; wanted > count[digit]; ++digit) wanted -= count[digit];
    key = key << bits | digit;
  }
  *largest = key;
  return wanted;
}

void OverlapBeam::step(const float* x, const float* weight, SymbolRange symbols, uint32_t* links) {
  const int dim = trellis_.trellis.dim;
  int olds = 0;
  for (int p = 0; p < count_; ++p) {
    if (p == 0 || trellis_.old_of(state_[p]) != trellis_.old_of(state_[p - 1])) first_[olds++] = p;
    for (int d = 0; d < dim; ++d) residual_[p * dim + d] = trellis_.residual(x[d], state_[p], d);
  }
  first_[olds] = count_;
  int64_t candidates = 0;
  for (int s = symbols.begin; s < symbols.begin + symbols.count; ++s)
    for (int k = 0; k < olds; ++k, ++candidates) {
      const float* own = trellis_.own_point(trellis_.old_of(state_[first_[k]]), s);
      float least = kInfinity;
      int best = first_[k];
      for (int p = first_[k]; p < first_[k + 1]; ++p) {
        const float path = cost_[p] + trellis_.distance(&residual_[p * dim], 1, weight, own);
        if (path < least) least = path, best = p;
      }
      candidate_[candidates] = least;
      before_[candidates] = best;
    }
  uint32_t largest = ~0u;
  int64_t wanted = candidates;
  if (candidates > beam_) wanted = largest_kept(candidates, &largest);
  int kept = 0;
  for (int64_t c = 0; c < candidates; ++c) {
    const uint32_t key = cost_key(candidate_[c]);
    if (key > largest || (key == largest && wanted-- <= 0)) continue;
    const int symbol = symbols.begin + int(c / olds);
    next_state_[kept] = trellis_.next_state(trellis_.old_of(state_[before_[c]]), symbol);
    next_cost_[kept] = candidate_[c];
    links[kept++] = path_link(before_[c], symbol);
  }
  count_ = kept;
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
