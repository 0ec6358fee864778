// The best symbols of an overlapping-pyramid code (core/overlap.h) for given weights: Viterbi's
// algorithm, sixteen sequences at a time, one in each lane of a vector.
//
// A group's word v is old state and new symbol, v = symbol << state_bits | state; the next state is
// v >> step_bits. With window a = v >> reach and window b = v mod 2^window_bits the cost of a group
// is
//
//   sum over c of weight_c (x_c - T[a][0]_c - T[b][1]_c)^2 = first[a] + second[b] + cross[a, b],
//   first = sum weight (x - T0)^2,  second = sum weight T1 (T1 - 2 x),  cross = sum 2 weight T0 T1,
//
// where cross is the same for all sequences. So a transition is one addition and one minimum for
// sixteen sequences, and `first`, which depends on the next state only, comes after the minimum.
// With a spread a weight's term is weight (|x - T0 - T1| - spread)^2, which is no such sum: a
// transition is then some 5 dim operations more.
//
// The costs of all states are kept, and the way back finds each symbol by comparing again.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/matmul_blocks.h"
#include "cpu/overlap_kernels.h"

namespace pvq {

class OverlapSearch {
 public:
  // table [rows][2][dim]. weight [groups * dim], one for each column, or null for ones. spread: of
  // trellises that have one.
  OverlapSearch(const OverlapTrellis& trellis, const float* table, float spread,
                const float* weight, int64_t groups);

  // The symbols [groups] of least cost for up to 16 sequences x[lane] [groups * dim], from the
  // state start[lane] to end[lane], kFreeState for any. Says in start where each began and in cost
  // what it costs.
  void open(const float* const* x, int lanes, int* start, const int* end, uint8_t* const* symbol,
            float* cost);

  // The same on a ring, where the end is the beginning. The state there is what the best symbols of
  // the stretch around it pass through, and all others are the best for that state.
  void ring(const float* const* x, int lanes, int* start, uint8_t* const* symbol, float* cost);

 private:
  // As `open`, for groups (from + i) mod groups_, i < count, of each sequence.
  void search(const float* const* x, int lanes, int64_t from, int64_t count, int* start,
              const int* end, float* cost);
  const float* cross_of(int64_t group);
  // `cost` and what a transition from window b to window a adds for sequence `lane` of group i of
  // the input.
  float spread_cost(float cost, int64_t i, int lane, const float* weight, int a, int b) const;
  float* costs(int64_t i) { return costs_.get() + i * trellis_.states() * kOverlapLanes; }

  const OverlapTrellis trellis_;
  const OverlapKernels& kernels_;
  const float spread_;
  const int64_t groups_;
  std::vector<float> table_;   // [2][dim][rows]
  std::vector<float> weight_;  // [groups * dim]
  std::vector<float> cross_;
  int64_t crossed_ = -1;        // the group whose weights cross_ is for
  std::vector<float> scratch_;  // of a step
  const int64_t longest_;       // groups of a stretch
  std::vector<float> input_;    // [longest_][dim][16]
  Buffer<float> costs_;         // [longest_ + 1][states][16]
  std::vector<uint8_t> found_;  // [16][longest_]
};

}  // namespace pvq
