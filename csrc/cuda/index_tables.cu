// The tables that products from exact indices read.
#include "cuda/index_tables.h"

#include <algorithm>
#include <cstring>

namespace pvq {
namespace {

// Words in shared memory by address.
class Image {
 public:
  void put(uint32_t address, uint32_t word) {
    const size_t i = (address - kTableAddress) / 4;
    if (words_.size() <= i) words_.resize(i + 1);
    words_[i] = word;
  }
  void put_half(uint32_t address, uint16_t half) {
    const size_t i = (address - kTableAddress) / 4;
    const uint32_t before = i < words_.size() ? words_[i] : 0;
    put(address & ~3u, before | uint32_t(half) << (8 * (address & 2)));
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
  form.word_bits = r.bits;
  form.unit_bits = r.unit_bits;
  form.cell_bits = r.cell_bits;
  form.split = r.split;

  Image image;
  std::vector<uint32_t> address;  // of regions
  uint32_t end = kIndexRegions;
  if (r.dim == 16) {
    for (size_t i = 0; i < r.regions.size(); ++i) {
      if (r.regions[i].slot == 0) end = (end + 31) / 32 * 32;
      address.push_back(end);
      end += 4;
    }
    for (size_t c = 0; c < r.cells.size(); ++c)
      image.put_half(kIndexCells + 2 * uint32_t(c),
                     uint16_t(address[r.cells[c].first_region] | uint32_t(r.cells[c].slot_bits)));
  } else {
    end += 8 * uint32_t(r.region_of.size());
  }

  // The leaves have what the others leave.
  form.levels = (end + 15) / 16 * 16;
  const uint32_t leaves = form.levels + std::max(16u, 4u << gain_bits);
  const auto leaf_address = [&](int k) { return leaves + 4 * (r.start[k] + (k > 0 ? 3 : 0)); };
  form.most_pulses = r.pulses;
  while (leaf_address(form.most_pulses + 1) > kTableAddress + kIndexTableBytes) --form.most_pulses;

  for (int k = 0; k <= r.pulses; ++k) {
    const uint32_t place = k <= form.most_pulses ? leaf_address(k) : uint32_t(kIndexRareAddress);
    for (int half = 0; half < 2; ++half) {
      const auto count = uint32_t(r.fraction_count(2 * half, k));
      image.put(kIndexPulses + kIndexPulsesBytes * half + 4 * k,
                r.dim == 16 ? place << kIndexCountBits | count
                : half      ? count
                            : place);
    }
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
  for (size_t i = 0; i < address.size(); ++i) image.put(address[i], pulses_word(r.regions[i]));
  for (size_t i = 0; i < r.region_of.size(); ++i) {
    const Region& region = r.regions[r.region_of[i]];
    image.put(kIndexRegions + 8 * uint32_t(i), region.first << r.unit_bits);
    image.put(kIndexRegions + 8 * uint32_t(i) + 4, pulses_word(region));
  }
  for (uint32_t i = 0; i < 1u << gain_bits; ++i) image.put(form.levels + 4 * i, bits_of(levels[i]));
  image.put(leaves, r.points[0]);
  for (uint32_t i = r.start[1]; i < r.start[form.most_pulses + 1]; ++i)
    image.put(leaves + 4 * (i + 3), r.points[i]);

  append(image.words(), &bytes);
  form.table_bytes = int(bytes.size());
  start = bytes.size();
  append(r.start, &bytes);
  leaf = bytes.size();
  append(r.points, &bytes);
}

IndexForm IndexTables::at(const uint8_t* base) const {
  IndexForm placed = form;
  placed.tables = base;
  placed.start = reinterpret_cast<const uint32_t*>(base + start);
  placed.leaf = reinterpret_cast<const uint32_t*>(base + leaf);
  return placed;
}

}  // namespace pvq
