// Ranking and unranking of points of a pyramid in the tree order of pyramid.h.
//
// Three speeds of the same order: fixed sizes of 8, 16 and 32 coordinates in one 64-bit word
// (templates, leaves from a table), any size in one word, and any size at all. The last takes its
// capacity in limbs as a template argument, at least the pyramid's `limbs`: a GPU pays for the
// local memory of every thread it could run.
#pragma once

#include "core/leaf.h"
#include "core/limbs.h"
#include "core/pyramid.h"

namespace pvq {

// --- one word
// ---------------------------------------------------------------------------------------

struct NodeIndex {
  int left_pulses;
  uint64_t left, right;
};

PVQ_HD inline bool has_row(const LevelView& level, int k) {
  return k <= level.tabled || k == level.top_row;
}

PVQ_HD inline uint64_t narrow_count(const LevelView& level, int k) {
  return limbs::low64(level.counts + size_t(k) * level.limbs, level.limbs);
}

// Splits index < N(dim, k) of a node that has a row.
PVQ_HD inline NodeIndex split_by_row(const LevelView& level, int k, uint64_t index) {
  const Row at = level.rows[k];
  const Split* row = level.splits + at.splits;
  int j = level.first[256 * at.buckets + uint32_t(index >> at.shift)];
  while (index >= row[j + 1].offset) ++j;
  const uint64_t rest = index - row[j].offset;
  // The reciprocal is short by less than one part in 2^64, the quotient by at most one.
  uint64_t quotient = multiply_high(rest, row[j].reciprocal);
  uint64_t remainder = rest - quotient * row[j].radix;
  if (remainder >= row[j].radix) {
    ++quotient;
    remainder -= row[j].radix;
  }
  return {j, quotient, remainder};
}

PVQ_HD inline NodeIndex split_narrow(const PyramidView& p, const LevelView& level, int k,
                                     uint64_t index) {
  if (has_row(level, k)) return split_by_row(level, k, index);
  const LevelView& left = p.level[level.left_level];
  const LevelView& right = p.level[level.right_level];
  int j = 0;
  for (;; ++j) {
    const uint64_t points = narrow_count(left, j) * narrow_count(right, k - j);
    if (index < points) break;
    index -= points;
  }
  const uint64_t radix = narrow_count(right, k - j);
  return {j, index / radix, index % radix};
}

PVQ_HD inline uint64_t narrow_offset(const PyramidView& p, const LevelView& level, int k, int j) {
  if (has_row(level, k)) return level.splits[level.rows[k].splits + j].offset;
  const LevelView& left = p.level[level.left_level];
  const LevelView& right = p.level[level.right_level];
  uint64_t offset = 0;
  for (int i = 0; i < j; ++i) offset += narrow_count(left, i) * narrow_count(right, k - i);
  return offset;
}

PVQ_HD inline int pulses_of(const int16_t* y, int dim) {
  int pulses = 0;
  for (int i = 0; i < dim; ++i) pulses += leaf::magnitude(y[i]);
  return pulses;
}

// Any size, index < N(level.dim, k) < 2^64.
PVQ_HD inline void unrank_narrow(const PyramidView& p, int level, int k, uint64_t index,
                                 int16_t* y) {
  struct Pending {
    int level, pulses, position;
    uint64_t index;
  } stack[10];
  int depth = 0;
  stack[depth++] = {level, k, 0, index};
  while (depth > 0) {
    const Pending node = stack[--depth];
    const LevelView& here = p.level[node.level];
    if (here.dim <= 4) {
      leaf::unrank(here.dim, node.pulses, node.index, y + node.position);
      continue;
    }
    const NodeIndex split = split_narrow(p, here, node.pulses, node.index);
    const int left_dim = p.level[here.left_level].dim;
    stack[depth++] = {here.right_level, node.pulses - split.left_pulses, node.position + left_dim,
                      split.right};
    stack[depth++] = {here.left_level, split.left_pulses, node.position, split.left};
  }
}

// Fixed sizes D = 4 * 2^n of a narrow pyramid, whose nodes all have rows: calls
// leaf(position, pulses, index) for each leaf. kLevel 0 has D coordinates, 1 has D / 2, and so on.
template <int D, int kLevel = 0, class Leaf>
PVQ_HD inline void split_to_leaves(const PyramidView& p, int k, uint64_t index, int position,
                                   const Leaf& leaf) {
  if constexpr (D == 4) {
    leaf(position, k, index);
  } else {
    const NodeIndex split = split_by_row(p.level[kLevel], k, index);
    split_to_leaves<D / 2, kLevel + 1>(p, split.left_pulses, split.left, position, leaf);
    split_to_leaves<D / 2, kLevel + 1>(p, k - split.left_pulses, split.right, position + D / 2,
                                       leaf);
  }
}

// A leaf of four as the table has it, one int8 a coordinate; k <= kLeafPulses.
PVQ_HD inline uint32_t tabled_leaf(const PyramidView& p, int k, uint64_t index) {
  return p.leaf_points[p.leaf_start[k] + uint32_t(index)];
}

template <int D>
PVQ_HD inline void unrank_fixed(const PyramidView& p, int k, uint64_t index, int16_t* y) {
  split_to_leaves<D>(p, k, index, 0, [&](int position, int pulses, uint64_t leaf_index) {
    if (pulses > kLeafPulses) {
      leaf::unrank4(pulses, leaf_index, y + position);
      return;
    }
    const uint32_t packed = tabled_leaf(p, pulses, leaf_index);
    for (int i = 0; i < 4; ++i) y[position + i] = int8_t(packed >> (8 * i));
  });
}

struct Ranked {
  int pulses;
  uint64_t index;
};

template <int D>
PVQ_HD inline Ranked rank_fixed(const PyramidView& p, int level, const int16_t* y) {
  if constexpr (D == 4) {
    return {pulses_of(y, 4), leaf::rank4(y)};
  } else {
    const Ranked left = rank_fixed<D / 2>(p, level + 1, y);
    const Ranked right = rank_fixed<D / 2>(p, level + 1, y + D / 2);
    const LevelView& here = p.level[level];
    const int k = left.pulses + right.pulses;
    return {k, here.splits[here.rows[k].splits + left.pulses].offset +
                   left.index * narrow_count(p.level[level + 1], right.pulses) + right.index};
  }
}

// --- any size
// ---------------------------------------------------------------------------------------

PVQ_HD inline void add_split_products(const PyramidView& p, const LevelView& level, int k, int i,
                                      uint32_t* sum, int n) {
  const LevelView& left = p.level[level.left_level];
  const LevelView& right = p.level[level.right_level];
  limbs::add_product(sum, n, left.counts + size_t(i) * left.limbs, left.limbs,
                     right.counts + size_t(k - i) * right.limbs, right.limbs);
}

// The pulses of the left half for an index of the root; subtracts what comes before them.
PVQ_HD inline int split_root(const PyramidView& p, uint32_t* index) {
  const int n = p.limbs;
  int low = 0, high = p.pulses;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (limbs::compare(p.root_offsets + size_t(middle) * n, n, index, n) <= 0)
      low = middle;
    else
      high = middle - 1;
  }
  limbs::subtract(index, n, p.root_offsets + size_t(low) * n, n);
  return low;
}

// The same at a node without a table.
template <int kCapacity>
PVQ_HD inline int split_wide(const PyramidView& p, const LevelView& here, int k, uint32_t* index) {
  const int n = here.limbs;
  uint32_t points[kCapacity + 1];
  for (int j = 0;; ++j) {
    limbs::set(points, n + 1, 0);
    add_split_products(p, here, k, j, points, n + 1);
    if (limbs::compare(index, n, points, n + 1) < 0) return j;
    limbs::subtract(index, n, points, n);
  }
}

// index [p.limbs] < N(dim, pulses).
template <int kCapacity>
PVQ_HD inline void unrank_wide(const PyramidView& p, const uint32_t* index, int16_t* y) {
  struct Pending {
    int level, pulses, position;
    uint32_t index[kCapacity];
  } stack[10];
  int depth = 1;
  stack[0].level = 0, stack[0].pulses = p.pulses, stack[0].position = 0;
  limbs::copy(stack[0].index, kCapacity, index, p.limbs);
  while (depth > 0) {
    Pending& node = stack[--depth];
    const LevelView& here = p.level[node.level];
    const int k = node.pulses, n = here.limbs, position = node.position;
    if (k <= here.narrow) {
      unrank_narrow(p, node.level, k, limbs::low64(node.index, n), y + position);
      continue;
    }
    uint32_t rest[kCapacity + 1], quotient[kCapacity];
    limbs::copy(rest, n, node.index, n);
    const int j = node.level == 0 ? split_root(p, rest) : split_wide<kCapacity>(p, here, k, rest);
    const LevelView& right = p.level[here.right_level];
    limbs::divide<kCapacity>(rest, n, right.counts + size_t(k - j) * right.limbs, right.limbs,
                             quotient);
    const int right_level = here.right_level, left_level = here.left_level;
    Pending& second = stack[depth++];
    second.level = right_level, second.pulses = k - j;
    second.position = position + p.level[left_level].dim;
    limbs::copy(second.index, kCapacity, rest, n);
    Pending& first = stack[depth++];
    first.level = left_level, first.pulses = j, first.position = position;
    limbs::copy(first.index, kCapacity, quotient, n);
  }
}

// index [p.limbs] = the rank of a point y.
//
// rank(node) = offset + rank(left) * N(right) + rank(right) adds the right half's rank to the
// node's own sum, so only left halves need a sum of their own: one for each node that waits for its
// left.
template <int kCapacity>
PVQ_HD inline void rank_wide(const PyramidView& p, const int16_t* y, uint32_t* index) {
  struct Waiting {
    int right_level, right_position, right_pulses, limbs;
    uint32_t sum[kCapacity];  // of the left half, `limbs` of them
  } stack[8];
  int depth = 0, level = 0, position = 0, n = p.limbs;
  uint32_t* sum = index;
  limbs::set(sum, n, 0);
  for (;;) {
    const LevelView& here = p.level[level];
    if (here.dim > 4) {
      const LevelView& left = p.level[here.left_level];
      const int left_pulses = pulses_of(y + position, left.dim);
      const int right_position = position + left.dim;
      const int right_pulses = pulses_of(y + right_position, here.dim - left.dim);
      const int k = left_pulses + right_pulses;
      if (has_row(here, k)) {
        uint32_t offset[2];
        limbs::set(offset, 2, narrow_offset(p, here, k, left_pulses));
        limbs::add(sum, n, offset, limbs::length(offset, 2));
      } else if (level == 0) {
        limbs::add(sum, n, p.root_offsets + size_t(left_pulses) * p.limbs, p.limbs);
      } else {
        for (int i = 0; i < left_pulses; ++i) add_split_products(p, here, k, i, sum, n);
      }
      Waiting& node = stack[depth++];
      node.right_level = here.right_level, node.right_position = right_position;
      node.right_pulses = right_pulses, node.limbs = left.limbs;
      sum = node.sum, n = node.limbs;
      limbs::set(sum, n, 0);
      level = here.left_level;
      continue;
    }
    uint32_t leaf[2];
    limbs::set(leaf, 2, leaf::rank(here.dim, y + position));
    limbs::add(sum, n, leaf, limbs::length(leaf, 2));
    if (depth == 0) return;
    const Waiting& node = stack[--depth];
    const LevelView& right = p.level[node.right_level];
    sum = depth ? stack[depth - 1].sum : index;
    n = depth ? stack[depth - 1].limbs : p.limbs;
    limbs::add_product(sum, n, node.sum, node.limbs,
                       right.counts + size_t(node.right_pulses) * right.limbs, right.limbs);
    level = node.right_level, position = node.right_position;
  }
}

}  // namespace pvq
