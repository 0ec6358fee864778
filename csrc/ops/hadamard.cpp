// torch.ops.pvq.hadamard and hadamard_: the block Hadamard transform of the last dimension.
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "core/hadamard_factors.h"
#include "core/signs.h"
#include "cpu/hadamard.h"
#include "cuda/hadamard.h"
#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/hadamard.h"

namespace pvq::ops {
namespace {

struct Options {
  int block;
  std::optional<uint64_t> seed;
  bool inverse;
};

Options check_arguments(const char* op, const Tensor& x, int64_t block, std::optional<int64_t> seed,
                        bool inverse) {
  PVQ_CHECK(x.dim() >= 1, "pvq::", op, ": x has no dimension, expected at least one");
  HadamardSplit split;
  PVQ_CHECK(split_hadamard_block(block, &split), "pvq::", op, ": block is ", block,
            ", for which there is no Hadamard matrix; take a power of two up to ",
            1 << kMaxHadamardPower, " or pvq.rotation.default_block(", x.size(x.dim() - 1), ")");
  PVQ_CHECK(x.size(x.dim() - 1) % block == 0, "pvq::", op, ": x has ", x.size(x.dim() - 1),
            " columns, expected a multiple of block = ", block);
  Options options{static_cast<int>(block), std::nullopt, inverse};
  if (seed) options.seed = static_cast<uint64_t>(*seed);
  return options;
}

// --- CPU -----------------------------------------------------------------------------------------

// Both contiguous, of equal shape; they may be the same tensor.
void transform_cpu(const char* op, const Tensor& x, const Tensor& y, const Options& options) {
  check_dtype(op, "x", x,
              {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  if (x.numel() == 0) return;
  const int64_t cols = x.size(x.dim() - 1);
  std::vector<uint64_t> words;
  if (options.seed) {
    words.resize(static_cast<size_t>(sign_word_count(cols)));
    fill_sign_words(*options.seed, cols, words.data());
  }
  const uint64_t* signs = options.seed ? words.data() : nullptr;
  const void* in = x.const_data_ptr();
  void* out = y.mutable_data_ptr();
  const auto blocks = [&](int64_t first, int64_t last) {
    switch (x.scalar_type()) {
      case ScalarType::Float:
        return hadamard_blocks(static_cast<const float*>(in), static_cast<float*>(out), cols,
                               options.block, signs, options.inverse, first, last);
      case ScalarType::Double:
        return hadamard_blocks(static_cast<const double*>(in), static_cast<double*>(out), cols,
                               options.block, signs, options.inverse, first, last);
      case ScalarType::Half:
        return hadamard_blocks_float16(static_cast<const uint16_t*>(in),
                                       static_cast<uint16_t*>(out), cols, options.block, signs,
                                       options.inverse, first, last);
      default:
        return hadamard_blocks_bfloat16(static_cast<const uint16_t*>(in),
                                        static_cast<uint16_t*>(out), cols, options.block, signs,
                                        options.inverse, first, last);
    }
  };
  constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least: about 10 microseconds
  torch::stable::parallel_for(0, x.numel() / options.block,
                              std::max<int64_t>(1, kGrain / options.block), blocks);
}

// --- CUDA ----------------------------------------------------------------------------------------

void transform_cuda(const char* op, const Tensor& x, const Tensor& y, const Options& options) {
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  if (x.numel() == 0) return;
  const int64_t cols = x.size(x.dim() - 1);
  check_range(op, "x's number of columns", cols, 1, std::numeric_limits<int32_t>::max());
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  HadamardCuda task{};
  task.in = x.const_data_ptr();
  task.out = y.mutable_data_ptr();
  task.type = x.scalar_type() == ScalarType::Float  ? HadamardType::kFloat32
              : x.scalar_type() == ScalarType::Half ? HadamardType::kFloat16
                                                    : HadamardType::kBFloat16;
  task.size = x.numel();
  task.cols = cols;
  task.block = options.block;
  task.has_signs = options.seed.has_value();
  task.seed = options.seed.value_or(0);
  task.inverse = options.inverse;
  const int64_t bytes = hadamard_cuda_workspace(task);
  std::optional<Tensor> workspace;
  if (bytes > 0) workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  check_cuda(op, hadamard_cuda(task, workspace ? workspace->mutable_data_ptr() : nullptr,
                               current_cuda_stream(x)));
}

// --- operators -----------------------------------------------------------------------------------

using Transform = void (*)(const char*, const Tensor&, const Tensor&, const Options&);

// The GPU's vector loads want it; the CPU does not mind.
bool is_aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

template <Transform transform>
Tensor hadamard(const Tensor& x, int64_t block, std::optional<int64_t> seed, bool inverse) {
  const Options options = check_arguments("hadamard", x, block, seed, inverse);
  Tensor source = torch::stable::contiguous(x);
  if (!is_aligned(source)) source = torch::stable::clone(source);
  const bool copied = source.const_data_ptr() != x.const_data_ptr();
  Tensor y = copied ? source : torch::stable::empty_like(source);
  transform("hadamard", source, y, options);
  return y;
}

template <Transform transform>
void hadamard_(Tensor x, int64_t block, std::optional<int64_t> seed, bool inverse) {
  const Options options = check_arguments("hadamard_", x, block, seed, inverse);
  if (x.is_contiguous() && is_aligned(x)) return transform("hadamard_", x, x, options);
  const Tensor y = hadamard<transform>(x, block, seed, inverse);
  torch::stable::copy_(x, y);
}

}  // namespace

Tensor hadamard_on_cuda(const Tensor& x, int64_t block, std::optional<int64_t> seed, bool inverse) {
  return hadamard<transform_cuda>(x, block, seed, inverse);
}

void hadamard_on_cuda_(const Tensor& x, int64_t block, std::optional<int64_t> seed, bool inverse) {
  hadamard_<transform_cuda>(x, block, seed, inverse);
}

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("hadamard", TORCH_BOX(&hadamard<transform_cpu>));
  m.impl("hadamard_", TORCH_BOX(&hadamard_<transform_cpu>));
}

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("hadamard", TORCH_BOX(&hadamard<transform_cuda>));
  m.impl("hadamard_", TORCH_BOX(&hadamard_<transform_cuda>));
}

}  // namespace pvq::ops
