// The symbols of an overlapping-pyramid code that a beam search (core/overlap_beam.h) finds.
#pragma once

#include <cstdint>
#include <vector>

#include "core/overlap_beam.h"

namespace pvq {

class OverlapBeam {
 public:
  // table [rows][terms][dim]; weight [groups * dim], one for each column, or null for ones. `beam`
  // paths are kept, as many as there are states at most.
  OverlapBeam(const OverlapTrellis& trellis, const float* table, const float* weight,
              int64_t groups, int beam);

  // The symbols [groups] for x [groups * dim] from the state *start to `end`, kFreeState for any.
  // Says in *start where they begin, and what they cost: infinity if none lead to `end`.
  float open(const float* x, int* start, int end, uint8_t* symbol);

  // The same on a ring, as OverlapSearch::ring.
  float ring(const float* x, int* start, uint8_t* symbol);

 private:
  // As `open`, for groups (from + i) mod groups_, i < count. Says in *middle the state behind group
  // `until`.
  float search(const float* x, int64_t from, int64_t count, int64_t until, int* start, int end,
               int* middle);
  void step(const float* x, const float* weight, SymbolRange symbols, uint32_t* links);
  // candidate_[k] [symbols.count] = the costs of the candidates of the k-th `old`.
  void find_candidates(int k, const float* weight, SymbolRange symbols, float* candidate);
  // kept_ = the candidates of least cost, in the order of their states.
  void keep(int olds, SymbolRange symbols);

  const BeamTrellis trellis_;
  const float* weight_;
  const int64_t groups_;
  const int beam_;
  std::vector<float> own_;  // T0 as [newest bits of an `old`][dim][symbol]
  int count_ = 0;           // of the paths
  std::vector<int> state_, next_state_;
  std::vector<float> cost_, next_cost_;
  std::vector<int> first_;       // of each `old`: its first path, and the end
  std::vector<float> residual_;  // [path][dim]
  std::vector<float> candidate_;
  struct Candidate {
    int symbol, k;
    uint32_t key;
    bool operator<(const Candidate& other) const {
      return symbol != other.symbol ? symbol < other.symbol : k < other.k;
    }
  };
  std::vector<Candidate> kept_, close_;
  std::vector<uint32_t> links_;  // [group][beam]
  std::vector<uint8_t> found_;
};

}  // namespace pvq
