#include "core/regions.h"

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/count.h"
#include "core/leaf.h"

namespace pvq {
namespace {

constexpr uint64_t kOne = uint64_t(1) << 32;

uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

uint32_t share_of(uint64_t count) { return uint32_t(std::min(kOne - 1, kOne / count)); }

// Among a point and its negative, whether this one stands for both.
bool leads(const int16_t* y) {
  for (int i = 0; i < 4; ++i)
    if (y[i] != 0) return y[i] > 0;
  return true;
}

// The fractions that a region must tell apart.
uint64_t fractions_of(const Regions& r, const Region& region) {
  uint64_t fractions = 1;
  for (int l = 0; l < 4; ++l) fractions *= r.fraction_count(l, region.pulses[l]);
  return fractions;
}

// The most that a region has.
uint64_t largest_fraction(const Regions& r) {
  uint64_t most = 0;
  for (int k1 = 0; k1 <= r.pulses; ++k1)
    for (int k2 = 0; k1 + k2 <= r.pulses; ++k2)
      for (int k3 = 0; k1 + k2 + k3 <= r.pulses; ++k3)
        most = std::max(most, fractions_of(r, {{uint8_t(k1), uint8_t(k2), uint8_t(k3),
                                                uint8_t(r.pulses - k1 - k2 - k3)},
                                               0,
                                               0,
                                               0}));
  return most;
}

// How many values q need so that q * share reaches the last of `count` cells of 2^32.
uint64_t values_of(uint64_t count, uint64_t share) { return divide_up(count * kOne, share); }

}  // namespace

bool Regions::supports(int dim, int pulses) {
  return (dim == 8 || dim == 16) && pulses >= 1 && pulses <= kRegionPulses;
}

const Regions& Regions::get(int dim, int pulses) {
  if (!supports(dim, pulses))
    throw std::invalid_argument("there are regions for dim 8 and 16 and 1 to " +
                                std::to_string(kRegionPulses) + " pulses, not for dim " +
                                std::to_string(dim) + " and " + std::to_string(pulses));
  static std::mutex mutex;
  static auto& cache = *new std::map<std::pair<int, int>, std::unique_ptr<Regions>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[{dim, pulses}];
  if (!entry) entry = std::make_unique<Regions>(dim, pulses);
  return *entry;
}

Regions::Regions(int dim_, int pulses_) : dim(dim_), pulses(pulses_), bits(0) {
  for (int k = 0; k <= pulses; ++k) {
    start.push_back(uint32_t(points.size()));
    const uint64_t all = leaf::count(4, uint64_t(k));
    for (uint64_t i = 0; i < all; ++i) {
      int16_t y[4];
      leaf::unrank4(k, i, y);
      if (!leads(y)) continue;
      uint32_t packed = 0;
      for (int c = 0; c < 4; ++c) packed |= uint32_t(uint8_t(y[c])) << (8 * c);
      points.push_back(packed);
    }
    count.push_back(uint32_t(points.size()) - start.back());
    share.push_back(share_of(count.back()));
  }
  start.push_back(uint32_t(points.size()));

  if (dim == 16)
    while (largest_fraction(*this) > kOne) split += 2;
  bits = index_bits(dim, pulses) - dim / 4;
  while (!(dim == 8 ? place_by_unit(bits) : place_in_cells(bits))) ++bits;
}

bool Regions::place_in_cells(int word_bits) {
  struct Sized {
    Region region;
    int bits;  // of its fractions
  };
  std::vector<Sized> sorted;
  const auto add = [&](int k1, int k2, int k3, int k4) {
    const Region region = {{uint8_t(k1), uint8_t(k2), uint8_t(k3), uint8_t(k4)}, 0, 0, 0};
    sorted.push_back({region, int(std::bit_width(fractions_of(*this, region) - 1))});
  };
  for (int k1 = 0; k1 <= pulses; ++k1)
    for (int k2 = 0; k1 + k2 <= pulses; ++k2)
      for (int k3 = 0; k1 + k2 + k3 <= pulses; ++k3) add(k1, k2, k3, pulses - k1 - k2 - k3);
  add(0, 0, 0, 0);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Sized& a, const Sized& b) { return a.bits > b.bits; });

  for (cell_bits = 0; cell_bits <= kCellBits; ++cell_bits) {
    const int inside = word_bits - 2 * split - cell_bits;  // bits of slot and fraction
    cells.clear();
    regions.clear();
    while (regions.size() < sorted.size() && cells.size() < size_t(1) << cell_bits) {
      const size_t first = regions.size();
      const int slot_bits = inside - sorted[first].bits;
      if (slot_bits < 0 || slot_bits >= 32) break;
      const size_t end = std::min<size_t>(sorted.size(), first + (size_t(1) << slot_bits));
      for (size_t i = first; i < end; ++i) {
        regions.push_back(sorted[i].region);
        regions.back().cell = int(cells.size());
        regions.back().slot = int(i - first);
      }
      cells.push_back({uint32_t(first), slot_bits});
    }
    if (regions.size() == sorted.size()) return true;
  }
  return false;
}

bool Regions::place_by_unit(int word_bits) {
  unit_bits = std::max(0, word_bits - kUnitBits);
  const uint32_t units = uint32_t(1) << (word_bits - unit_bits);
  regions.clear();
  region_of.clear();
  const auto add = [&](int k1, int k2) {
    const uint64_t words = values_of(count[k1], share[k2]);
    const auto size = uint32_t(divide_up(words, uint64_t(1) << unit_bits));
    regions.push_back({{uint8_t(k1), uint8_t(k2)}, uint32_t(region_of.size()), 0, 0});
    region_of.insert(region_of.end(), size, uint16_t(regions.size() - 1));
  };
  for (int k1 = 0; k1 <= pulses; ++k1) add(k1, pulses - k1);
  add(0, 0);
  if (region_of.size() > units) return false;
  region_of.resize(units, region_of.back());
  return true;
}

}  // namespace pvq
