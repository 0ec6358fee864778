// matmul and matmul_transposed on the CPU, and what all products share.
#include "ops/matmul.h"

#include <algorithm>
#include <vector>

#include "core/signs.h"
#include "cpu/hadamard.h"
#include "cpu/matmul.h"
#include "ops/code.h"

namespace pvq::ops {
namespace {

// The least work, in multiplications, for which another thread is woken.
constexpr int64_t kWorkPerThread = 1 << 16;

int64_t grain(int64_t work_per_unit) {
  return std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work_per_unit));
}

int64_t tokens_of(const Tensor& x) {
  int64_t tokens = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) tokens *= x.size(i);
  return tokens;
}

// Rotates `tokens` rows of `cols` columns, or rotates them back.
void rotate(const float* in, float* out, int64_t tokens, int64_t cols, Rotation rotation,
            bool inverse) {
  std::vector<uint64_t> signs(sign_word_count(cols));
  fill_sign_words(static_cast<uint64_t>(rotation.seed), cols, signs.data());
  torch::stable::parallel_for(0, tokens * (cols / rotation.block), grain(rotation.block * 16),
                              [&](int64_t begin, int64_t end) {
                                hadamard_blocks(in, out, cols, static_cast<int>(rotation.block),
                                                signs.data(), inverse, begin, end);
                              });
}

// out [tokens, lanes] for a [tokens, depth]. Returns kNoRow or a damaged row.
int64_t multiply(const Tensor& a, int64_t tokens, const WeightTiles& tiles, bool bfloat16,
                 float* out) {
  const auto product = Product::make(tiles, tokens, bfloat16);
  const float* activations = a.const_data_ptr<float>();
  const void* packed = activations;
  Tensor storage;
  if (product->pack_units() > 0) {
    storage = torch::stable::new_empty(a, {static_cast<int64_t>(product->packed_bytes())},
                                       ScalarType::Byte);
    void* target = storage.mutable_data_ptr();
    torch::stable::parallel_for(
        0, product->pack_units(), grain(tokens * tiles.depth / product->pack_units()),
        [&](int64_t begin, int64_t end) { product->pack(activations, begin, end, target); });
    packed = target;
  }
  DamagedRow damaged;
  const int64_t work = tokens * tiles.depth * tiles.lanes / product->panels();
  torch::stable::parallel_for(0, product->panels(), grain(work), [&](int64_t begin, int64_t end) {
    damaged.report(product->multiply(packed, begin, end, out));
  });
  return damaged.row();
}

ProductResult multiply_with(const Tensor& x, const WeightTiles& tiles, Rotation before,
                            Rotation after) {
  const int64_t tokens = tokens_of(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = tiles.lanes;
  Tensor out = torch::stable::new_empty(x, shape, ScalarType::Float);
  if (tokens == 0 || tiles.lanes == 0) return {as_dtype(out, x.scalar_type()), kNoRow};

  Tensor a = as_dtype(as_contiguous(x), ScalarType::Float);
  if (before.block > 0 && tiles.depth > 0) {
    Tensor rotated = x.scalar_type() == ScalarType::Float ? torch::stable::empty_like(a) : a;
    rotate(a.const_data_ptr<float>(), rotated.mutable_data_ptr<float>(), tokens, tiles.depth,
           before, /*inverse=*/false);
    a = rotated;
  }
  float* result = out.mutable_data_ptr<float>();
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  const int64_t bad_row = multiply(a, tokens, tiles, bfloat16, result);
  if (after.block > 0) rotate(result, result, tokens, tiles.lanes, after, /*inverse=*/true);
  return {as_dtype(out, x.scalar_type()), bad_row};
}

Tensor matmul_cpu(const Tensor& x, const Tensor& index, const Tensor& gain, const Tensor& row_scale,
                  int64_t dim, int64_t pulses, int64_t gain_bits, const std::string& gain_law,
                  int64_t block, int64_t seed) {
  constexpr const char* op = "matmul";
  const int64_t cols = columns_of(op, x);
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_activations(op, "x", x, cols, "in_features", "index", index);
  check_rotation(op, {block, seed}, cols);
  const auto [out, bad_row] =
      multiply_rotated(x, CodeTiles(code.view, /*transposed=*/false), {block, seed});
  if (bad_row != kNoRow) refuse_index(op, bad_row);
  return out;
}

Tensor matmul_transposed_cpu(const Tensor& g, const Tensor& index, const Tensor& gain,
                             const Tensor& row_scale, int64_t dim, int64_t pulses,
                             int64_t gain_bits, const std::string& gain_law, int64_t cols,
                             int64_t block, int64_t seed) {
  constexpr const char* op = "matmul_transposed";
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_activations(op, "g", g, code.view.rows, "rows of the matrix", "index", index);
  check_rotation(op, {block, seed}, cols);
  const auto [out, bad_row] =
      multiply_unrotated(g, CodeTiles(code.view, /*transposed=*/true), {block, seed});
  if (bad_row != kNoRow) refuse_index(op, bad_row);
  return out;
}

}  // namespace

void check_activations(const char* op, const char* name, const Tensor& x, int64_t size,
                       const char* size_name, const char* other_name, const Tensor& other) {
  check_dtype(op, name, x, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  PVQ_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == size, "pvq::", op, ": ", name, " has shape ",
            shape_name(x), ", expected [..., ", size, "], the ", size_name);
  check_same_device(op, name, x, other_name, other);
}

ProductResult multiply_rotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation) {
  return multiply_with(x, tiles, rotation, {0, 0});
}

ProductResult multiply_unrotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation) {
  return multiply_with(x, tiles, {0, 0}, rotation);
}

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("matmul", TORCH_BOX(&matmul_cpu));
  m.impl("matmul_transposed", TORCH_BOX(&matmul_transposed_cpu));
}

}  // namespace pvq::ops
