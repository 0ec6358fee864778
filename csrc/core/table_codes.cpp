#include "core/table_codes.h"

#include <array>
#include <map>
#include <vector>

namespace pvq {
namespace {

template <int kBits>
constexpr auto kTable = make_point_table<kBits>();

static_assert(kTable<2>.count == kTablePoints);
static_assert(kTable<3>.count == kTablePoints);
static_assert(kTable<4>.count == kTablePoints);

// The arrangement of a leader that has the order `order` says; false if no vector has it.
template <int kBits>
bool arrange(int leader, int order, std::array<int, TableCode<kBits>::kDim>* out) {
  constexpr int kDim = TableCode<kBits>::kDim;
  int rank[kDim] = {};  // how many coordinates go before this one; of equal ones, those to the left
  for (int i = 0, bit = 0; i < kDim; ++i)
    for (int j = i + 1; j < kDim; ++j, ++bit) ++rank[order >> bit & 1 ? i : j];
  unsigned seen = 0;
  for (int i = 0; i < kDim; ++i) {
    seen |= 1u << rank[i];
    (*out)[i] = TableCode<kBits>::kLeaders[leader][rank[i]];
  }
  return seen == (1u << kDim) - 1;
}

template <int kBits>
std::vector<uint8_t> make_names() {
  using Key = TableKey<kBits>;
  constexpr int kDim = Key::kDim;
  using Point = std::array<int, kDim>;
  std::map<Point, uint8_t> byte;
  for (int b = 0; b < kTablePoints; ++b) {
    Point p;
    for (int i = 0; i < kDim; ++i) p[i] = kTable<kBits>.point[b][i];
    byte[p] = uint8_t(b);
  }
  std::vector<uint8_t> names(Key::kCount);
  for (int key = 0; key < Key::kCount; ++key) {
    const int order = key >> Key::kSignBits & ((1 << Key::kOrderBits) - 1);
    Point p;
    if (!arrange<kBits>(key >> (Key::kSignBits + Key::kOrderBits), order, &p)) continue;
    for (int i = 0; i < Key::kSignBits; ++i)
      if (key >> i & 1) p[i] = -p[i];
    names[key] = byte.at(p);
  }
  return names;
}

}  // namespace

int table_dim(int bits) { return bits == 4 ? TableCode<4>::kDim : TableCode<2>::kDim; }

const int8_t* table_points(int bits) {
  switch (bits) {
    case 2:
      return kTable<2>.point[0];
    case 3:
      return kTable<3>.point[0];
    default:
      return kTable<4>.point[0];
  }
}

const uint8_t* table_names(int bits) {
  static const std::vector<uint8_t> names[] = {make_names<2>(), make_names<3>(), make_names<4>()};
  return names[bits - 2].data();
}

}  // namespace pvq
