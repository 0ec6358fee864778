#include "core/pyramid.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "core/index.h"
#include "core/leaf.h"
#include "core/limbs.h"

namespace pvq {
namespace {

// Rows beyond this many pulses are rare (only D = 8 and less reach them within 64 bits) and large.
constexpr int kMaxTabled = 256;

struct LeafTable {
  std::vector<uint32_t> points;
  std::vector<uint32_t> start;

  LeafTable() {
    for (int k = 0; k <= kLeafPulses; ++k) {
      start.push_back(uint32_t(points.size()));
      for (uint64_t i = 0; i < leaf::count(4, k); ++i) {
        int16_t y[4];
        leaf::unrank4(k, i, y);
        uint32_t packed = 0;
        for (int c = 0; c < 4; ++c) packed |= uint32_t(uint8_t(y[c])) << (8 * c);
        points.push_back(packed);
      }
    }
  }
};

const LeafTable& leaf_table() {
  static const LeafTable table;
  return table;
}

// All node sizes of the tree, largest first.
std::vector<int> tree_sizes(int dim) {
  std::set<int, std::greater<>> sizes = {dim};
  for (auto size = sizes.begin(); size != sizes.end(); ++size)
    if (*size > 4) sizes.insert({*size - *size / 2, *size / 2});
  return {sizes.begin(), sizes.end()};
}

}  // namespace

const Pyramid& Pyramid::get(int dim, int pulses) {
  static std::mutex mutex;
  static auto& cache = *new std::map<std::pair<int, int>, std::unique_ptr<Pyramid>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[{dim, pulses}];
  if (!entry) entry = std::make_unique<Pyramid>(dim, pulses);
  return *entry;
}

Pyramid::Pyramid(int dim, int pulses) : view_{} {
  check_pyramid(dim, pulses);
  const std::vector<int> sizes = tree_sizes(dim);
  std::vector<CountRow> rows = count_rows({sizes.rbegin(), sizes.rend()}, pulses);
  std::reverse(rows.begin(), rows.end());

  view_.dim = dim;
  view_.pulses = pulses;
  const CountRow& root = rows.front();
  view_.index_bits = limbs::bit_length(root[pulses], root.limbs);
  view_.limbs = (view_.index_bits + 31) / 32;
  view_.narrow = view_.index_bits <= 64;
  view_.zero_index = limbs::low64(root[pulses], root.limbs);
  view_.num_levels = int(sizes.size());
  view_.leaf_points = leaf_table().points.data();
  view_.leaf_start = leaf_table().start.data();

  for (size_t i = 0; i < sizes.size(); ++i) {
    levels_.push_back(std::make_unique<Level>());
    Level& level = *levels_.back();
    level.dim = sizes[i];
    level.counts = std::move(rows[i]);
    LevelView& view = view_.level[i];
    view.dim = sizes[i];
    view.limbs = level.counts.limbs;
    view.counts = level.counts.values.data();
    view.narrow = pulses;
    while (limbs::bit_length(level.counts[view.narrow], level.counts.limbs) > 64) --view.narrow;
    view.tabled = view.top_row = -1;
    const auto level_of = [&](int size) {
      return int(std::find(sizes.begin(), sizes.end(), size) - sizes.begin());
    };
    view.left_level = sizes[i] > 4 ? level_of(sizes[i] - sizes[i] / 2) : -1;
    view.right_level = sizes[i] > 4 ? level_of(sizes[i] / 2) : -1;
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    LevelView& view = view_.level[i];
    if (view.dim <= 4) continue;
    if (i > 0) view.tabled = std::min(view.narrow, kMaxTabled);
    if (i == 0 && view.narrow == pulses) view.top_row = pulses;
    tabulate(*levels_[i], view);
  }
  if (!view_.narrow && dim > 4) tabulate_root();
}

void Pyramid::tabulate(Level& level, LevelView& view) {
  const LevelView& left = view_.level[view.left_level];
  const LevelView& right = view_.level[view.right_level];
  const auto narrow_count = [](const LevelView& v, int k) {
    return limbs::low64(v.counts + size_t(k) * v.limbs, v.limbs);
  };
  level.rows.assign(view_.pulses + 1, Row{});
  for (int k = 0; k <= view_.pulses; ++k) {
    if (k > view.tabled && k != view.top_row) continue;
    const uint64_t total = narrow_count(view, k);
    const size_t start = level.splits.size();
    uint64_t offset = 0;
    for (int j = 0; j <= k; ++j) {
      const uint64_t radix = narrow_count(right, k - j);
      level.splits.push_back({offset, radix, ~uint64_t(0) / radix});
      offset += narrow_count(left, j) * radix;
    }
    level.splits.push_back({total, 1, ~uint64_t(0)});

    const int bits = 64 - __builtin_clzll(total);
    const int shift = std::max(0, bits - 8);
    level.rows[k] = {uint32_t(start), uint16_t(level.first.size() / 256), uint16_t(shift)};
    int j = 0;
    for (uint64_t bucket = 0; bucket < 256; ++bucket) {
      while (j < k && level.splits[start + j + 1].offset <= bucket << shift) ++j;
      level.first.push_back(uint16_t(j));
    }
  }
  view.rows = level.rows.data();
  view.splits = level.splits.data();
  view.first = level.first.data();
}

void Pyramid::tabulate_root() {
  const LevelView& root = view_.level[0];
  const size_t n = view_.limbs;
  root_offsets_.assign((view_.pulses + 1) * n, 0);
  for (int j = 0; j < view_.pulses; ++j) {
    uint32_t* next = root_offsets_.data() + (j + 1) * n;
    std::copy_n(next - n, n, next);
    add_split_products(view_, root, view_.pulses, j, next, int(n));
  }
  view_.root_offsets = root_offsets_.data();
}

PyramidView Pyramid::relocated(uintptr_t base, std::vector<char>* bytes, size_t* row_bytes) const {
  const auto place = [&](const auto* table, size_t count) {
    const auto* data = reinterpret_cast<const char*>(table);
    const size_t start = bytes->size();
    bytes->insert(bytes->end(), data, data + count * sizeof(*table));
    bytes->resize((bytes->size() + 15) / 16 * 16);
    return reinterpret_cast<decltype(table)>(base + start);
  };
  PyramidView moved = view_;
  for (size_t i = 0; i < levels_.size(); ++i) {
    const Level& level = *levels_[i];
    LevelView& view = moved.level[i];
    view.rows = place(level.rows.data(), level.rows.size());
    view.splits = place(level.splits.data(), level.splits.size());
    view.first = place(level.first.data(), level.first.size());
  }
  *row_bytes = bytes->size();
  for (size_t i = 0; i < levels_.size(); ++i) {
    const std::vector<uint32_t>& counts = levels_[i]->counts.values;
    moved.level[i].counts = place(counts.data(), counts.size());
  }
  moved.root_offsets = place(root_offsets_.data(), root_offsets_.size());
  const int leaf_rows = std::min(view_.pulses, kLeafPulses) + 1;
  const LeafTable& leaves = leaf_table();
  moved.leaf_start = place(leaves.start.data(), leaf_rows);
  moved.leaf_points =
      place(leaves.points.data(), leaves.start[leaf_rows - 1] + leaf::count(4, leaf_rows - 1));
  return moved;
}

}  // namespace pvq
