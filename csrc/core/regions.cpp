#include "core/regions.h"

#include <algorithm>
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

Regions::Regions(int dim_, int pulses_) : dim(dim_), pulses(pulses_), bits(0), unit_bits(0) {
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

  bits = index_bits(dim, pulses) - dim / 4;
  while (!(dim == 8 ? place_by_unit(bits) : place_by_class(bits))) ++bits;
}

bool Regions::place_by_class(int word_bits) {
  // Units of at most 2^20 words, so that the rest of a word stands in its low half beside signs and
  // gain.
  unit_bits = std::max(0, std::min(20, word_bits - 20));
  std::vector<Region> sorted;
  const auto add = [&](int k1, int k2, int k3, int k4) {
    const uint32_t step = share_of(uint64_t(count[k3]) * count[k4]);
    const uint64_t words = divide_up(values_of(count[k1], share[k2]) * kOne, step);
    const uint64_t units = divide_up(words, uint64_t(1) << unit_bits);
    sorted.push_back({{uint8_t(k1), uint8_t(k2), uint8_t(k3), uint8_t(k4)},
                      step,
                      0,
                      uint32_t(std::min(units, kOne - 1))});
  };
  for (int k1 = 0; k1 <= pulses; ++k1)
    for (int k2 = 0; k1 + k2 <= pulses; ++k2)
      for (int k3 = 0; k1 + k2 + k3 <= pulses; ++k3) add(k1, k2, k3, pulses - k1 - k2 - k3);
  add(0, 0, 0, 0);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Region& a, const Region& b) { return a.size > b.size; });

  const int unit_count_bits = word_bits - unit_bits;
  for (class_bits = std::min(kClassBits, unit_count_bits); class_bits >= 0; --class_bits) {
    class_shift = unit_count_bits - class_bits;
    const uint64_t class_size = uint64_t(1) << class_shift;
    regions = sorted;
    classes.clear();
    size_t next = 0;
    while (next < regions.size() && classes.size() < size_t(1) << class_bits) {
      // A size whose reciprocal r = (2^32 + e) / size is exact below class_size.
      uint64_t size = std::max<uint64_t>(2, regions[next].size);
      while ((divide_up(kOne, size) * size - kOne) * class_size > kOne) ++size;
      const size_t here = std::min<size_t>(class_size / size, regions.size() - next);
      if (here == 0) break;
      const uint64_t first = classes.size() * class_size;
      classes.push_back({uint32_t(next), uint32_t(size), uint32_t(divide_up(kOne, size))});
      for (size_t i = 0; i < here; ++i, ++next) {
        regions[next].first = uint32_t(first + i * size);
        regions[next].size = uint32_t(size);
      }
    }
    if (next == regions.size()) {
      classes.resize(size_t(1) << class_bits, classes.back());
      return true;
    }
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
    regions.push_back({{uint8_t(k1), uint8_t(k2)}, 0, uint32_t(region_of.size()), size});
    region_of.insert(region_of.end(), size, uint16_t(regions.size() - 1));
  };
  for (int k1 = 0; k1 <= pulses; ++k1) add(k1, pulses - k1);
  add(0, 0);
  if (region_of.size() > units) return false;
  region_of.resize(units, region_of.back());
  return true;
}

}  // namespace pvq
