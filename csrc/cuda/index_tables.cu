// The tables that products from exact indices read.
#include "cuda/index_tables.h"

#include <algorithm>
#include <cstring>

namespace pvq {
namespace {

constexpr uint32_t kBias = 0x80808080;

// Words in shared memory by address.
class Image {
 public:
  void put(uint32_t address, uint32_t word) {
    const size_t i = (address - kTableAddress) / 4;
    if (words_.size() <= i) words_.resize(i + 1);
    words_[i] = word;
  }
  const std::vector<uint32_t>& words() const { return words_; }

 private:
  std::vector<uint32_t> words_;
};

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

void append(const std::vector<uint32_t>& words, std::vector<uint8_t>* bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(words.data());
  bytes->insert(bytes->end(), data, data + 4 * words.size());
  bytes->resize((bytes->size() + 15) / 16 * 16);
}

}  // namespace

IndexTables::IndexTables(const Regions& r, int gain_bits, const float* levels) {
  form.bits = index_group_bits(r, gain_bits);
  form.gain_bits = gain_bits;
  form.unit_bits = r.unit_bits;
  form.class_shift = r.class_shift;

  // The leaves have what the others leave.
  const size_t pairs = r.dim == 16 ? r.regions.size() : r.region_of.size();
  form.levels = uint32_t(kIndexRegions + 8 * pairs);
  const uint32_t leaves = form.levels + (4u << gain_bits);
  const uint32_t room = (kTableAddress + kIndexTableBytes - leaves) / 4;
  form.most_pulses = r.pulses;
  while (r.start[form.most_pulses + 1] > room) --form.most_pulses;

  Image image;
  for (int k = 0; k <= r.pulses; ++k) {
    const uint32_t place =
        k <= form.most_pulses ? leaves / 4 + r.start[k] : uint32_t(kIndexRarePlace);
    image.put(kIndexPulses + 4 * k, place << 16 | r.count[k]);
    image.put(kIndexShares + 4 * k, r.share[k]);
  }
  const auto pulses_word = [&](const Region& region) {
    uint32_t word = 0;
    for (int i = 0; i < r.dim / 4; ++i) {
      word |= uint32_t(region.pulses[i]) << (8 * i + 2);
      word |= region.pulses[i] > form.most_pulses;
    }
    return word;
  };
  for (size_t c = 0; c < r.classes.size(); ++c) {
    const uint32_t address = kIndexClasses + 4 * uint32_t(c);
    image.put(address, r.classes[c].reciprocal);
    image.put(address + kIndexClassBytes, -r.classes[c].size);
    image.put(address + 2 * kIndexClassBytes, kIndexRegions + 8 * r.classes[c].first_region);
  }
  for (size_t i = 0; i < pairs; ++i) {
    const Region& region = r.regions[r.dim == 16 ? i : r.region_of[i]];
    const uint32_t address = kIndexRegions + 8 * uint32_t(i);
    image.put(address, r.dim == 16 ? region.step : region.first << r.unit_bits);
    image.put(address + 4, pulses_word(region));
  }
  for (uint32_t i = 0; i < 1u << gain_bits; ++i) image.put(form.levels + 4 * i, bits_of(levels[i]));
  for (uint32_t i = 0; i < r.start[form.most_pulses + 1]; ++i)
    image.put(leaves + 4 * i, r.points[i] ^ kBias);

  append(image.words(), &bytes);
  form.table_bytes = int(bytes.size());
  start = bytes.size();
  append(r.start, &bytes);
  leaf = bytes.size();
  std::vector<uint32_t> biased = r.points;
  for (uint32_t& point : biased) point ^= kBias;
  append(biased, &bytes);
}

IndexForm IndexTables::at(const uint8_t* base) const {
  IndexForm placed = form;
  placed.tables = base;
  placed.start = reinterpret_cast<const uint32_t*>(base + start);
  placed.leaf = reinterpret_cast<const uint32_t*>(base + leaf);
  return placed;
}

}  // namespace pvq
