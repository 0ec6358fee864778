// From weights to a table code on the GPU, with the bits of cpu/table_quantize.cpp.
//
// A warp quantizes a row. The CPU's 32 interleaved partial sums are the lanes'
// (cpu/table_search.h), products and sums are rounded one by one, and the partials meet in the
// CPU's tree. A trial of a scale reads the row again, from the cache, and sorts it again: ten
// instructions beside the hundreds that the leaders take. About 25 trials of 36 leaders are 80
// instructions a weight, so that an H200 should quantize some ten billion weights a second at 3 and
// 4 bits.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/bfloat16.h"
#include "core/ieee.h"
#include "core/table_codes.h"
#include "cuda/table_stored.h"

namespace pvq {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / 32;  // of a block
constexpr unsigned kWarp = 0xFFFFFFFF;

// The same steps as in cpu/table_quantize.cpp.
constexpr float kLowest = 0.4f, kHighest = 2.5f, kStep = 1.13f;
constexpr int kFineSteps = 4, kRefits = 2;
__device__ constexpr float kFineStep[kFineSteps] = {1.06f, 1.03f, 1.015f, 1.0075f};

template <int kBits>
struct Names {
  uint8_t byte[TableKey<kBits>::kCount];
};

template <int kBits>
struct Task {
  const float* w;
  int64_t rows, cols;
  uint8_t* code;
  uint16_t* row_scale;
  Refusal refusal;
  Names<kBits> names;
};

template <class F>
__device__ double warp_total(F partial) {
  auto sum = static_cast<double>(partial);
#pragma unroll
  for (int width = 16; width >= 1; width /= 2) sum += __shfl_xor_sync(kWarp, sum, width);
  return sum;
}

__device__ float warp_largest(float value) {
#pragma unroll
  for (int width = 16; width >= 1; width /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWarp, value, width));
  return value;
}

__device__ void order(float& high, float& low) {
  const float a = high, b = low;
  high = fmaxf(a, b);
  low = fminf(a, b);
}

struct Fit {
  double product, square;  // of magnitudes m and their nearest points y: sums of <m, y>, <y, y>
};

template <int kBits>
class RowQuantizer {
 public:
  using Code = TableCode<kBits>;
  using Key = TableKey<kBits>;
  static constexpr int kDim = Code::kDim;
  static constexpr int kLeaders = table_leaders<kBits>();

  __device__ RowQuantizer(const Task<kBits>& task, int64_t row)
      : task_(task),
        row_(row),
        w_(task.w + row * task.cols),
        groups_(task.cols / kDim),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    float largest = 0;
    bool finite = true;
    each_group([&](int64_t, const float (&v)[kDim]) {
      for (const float x : v) {
        largest = fmaxf(largest, fabsf(x));
        finite = finite && isfinite(x);
      }
    });
    largest = warp_largest(largest);
    if (!__all_sync(kWarp, finite)) {
      if (lane_ == 0) task_.refusal.report(row_);
      return write_nothing(kNaN);
    }
    if (largest == 0) return write_nothing(0);

    // In units of 2^exponent nothing overflows and no square is lost. Half of the exponent at a
    // time, because 2^149 is no float.
    int exponent;
    frexpf(largest, &exponent);
    factor_[0] = ldexpf(1.0f, -exponent / 2);
    factor_[1] = ldexpf(1.0f, exponent / 2 - exponent);
    const float scale = best_scale(scaled(largest));
    const uint16_t stored = to_bfloat16(ldexpf(scale, exponent));
    if (stored == 0) return write_nothing(0);
    if (lane_ == 0) task_.row_scale[row_] = stored;
    write_codes(ldexpf(from_bfloat16(stored), -exponent));
  }

 private:
  static constexpr uint16_t kNaN = 0x7FC0;

  struct Trial {
    double gain;  // by how much the points reduce the row's energy
    float scale, refit;
  };

  __device__ uint8_t* code_row() const {
    return task_.code + row_ * table_row_bytes(kBits, task_.cols);
  }

  // Calls f(group, weights) for the lane's groups, ascending.
  template <class F>
  __device__ void each_group(F f) const {
    struct alignas(kDim * sizeof(float)) Vector {
      float value[kDim];
    };
    for (int64_t group = lane_; group < groups_; group += 32) {
      const Vector v = reinterpret_cast<const Vector*>(w_)[group];
      f(group, v.value);
    }
  }

  __device__ float scaled(float x) const {
    return ieee::multiply(ieee::multiply(fabsf(x), factor_[0]), factor_[1]);
  }

  // The magnitudes of a group in descending order, in the row's units.
  __device__ void sort(const float (&v)[kDim], float (&m)[kDim]) const {
#pragma unroll
    for (int i = 0; i < kDim; ++i) m[i] = scaled(v[i]);
    if constexpr (kDim == 4) {
      order(m[0], m[1]);
      order(m[2], m[3]);
      order(m[0], m[2]);
      order(m[1], m[3]);
      order(m[1], m[2]);
    } else {
      order(m[0], m[1]);
    }
  }

  static constexpr float square_of(int leader) {
    int square = 0;
    for (const int8_t stored : Code::kLeaders[leader]) {
      const int value = table_magnitude<kBits>(stored);
      square += value * value;
    }
    return float(square);
  }
  static constexpr float largest_magnitude() {
    int largest = 0;
    for (const auto& leader : Code::kLeaders) largest = leader[0] > largest ? leader[0] : largest;
    return float(table_magnitude<kBits>(largest));
  }
  struct Leaders {
    float value[kLeaders][kDim], square[kLeaders];
  };
  static constexpr Leaders make_leaders() {
    Leaders all = {};
    for (int k = 0; k < kLeaders; ++k) {
      for (int i = 0; i < kDim; ++i)
        all.value[k][i] = float(table_magnitude<kBits>(Code::kLeaders[k][i]));
      all.square[k] = square_of(k);
    }
    return all;
  }

  // The leader nearest to magnitudes: calls nearer(k, score, offset) whenever one is nearer than
  // those before it. |m - s y|^2 is least where <m, y> - s |y|^2 / 2 is greatest.
  template <class F>
  static __device__ void visit_leaders(const float (&m)[kDim], float scale, F nearer) {
    constexpr Leaders kLeader = make_leaders();
    const float half = ieee::multiply(0.5f, scale);
    float best = -INFINITY;
#pragma unroll
    for (int k = 0; k < kLeaders; ++k) {
      float score = ieee::multiply(m[0], kLeader.value[k][0]);
#pragma unroll
      for (int i = 1; i < kDim; ++i) score += ieee::multiply(m[i], kLeader.value[k][i]);
      const float offset = ieee::multiply(half, kLeader.square[k]);
      score -= offset;
      if (score > best) {
        best = score;
        nearer(k, score, offset);
      }
    }
  }

  __device__ Fit fit(float scale) const {
    float product = 0, offset_sum = 0;
    each_group([&](int64_t, const float (&v)[kDim]) {
      float m[kDim], best = 0, best_offset = 0;
      sort(v, m);
      visit_leaders(m, scale, [&](int, float score, float offset) {
        best = score;
        best_offset = offset;
      });
      product += best + best_offset;
      offset_sum += best_offset;
    });
    const double doubled = ieee::divide(warp_total(offset_sum), 0.5 * double(scale));
    return {warp_total(product), doubled};
  }

  __device__ double energy() const {
    float sum = 0;
    each_group([&](int64_t, const float (&v)[kDim]) {
      float m[kDim];
      sort(v, m);
#pragma unroll
      for (int i = 0; i < kDim; ++i) sum += ieee::multiply(m[i], m[i]);
    });
    return warp_total(sum);
  }

  __device__ void consider(float scale, Trial& best) const {
    const Fit found = fit(scale);
    Trial trial = {0, scale, scale};
    if (found.square > 0) {
      trial.gain = ieee::divide(ieee::multiply(found.product, found.product), found.square);
      trial.refit = float(ieee::divide(found.product, found.square));
    }
    if (trial.gain > best.gain) best = trial;
  }

  // largest: the row's largest magnitude in its units.
  __device__ float best_scale(float largest) const {
    const auto mean_square = float(ieee::divide(energy(), double(task_.cols)));
    const float nominal = ieee::multiply(ieee::root(mean_square), Code::kGaussianScale);
    const float highest =
        fmaxf(ieee::multiply(kHighest, nominal), ieee::divide(largest, largest_magnitude()));
    const float end = ieee::multiply(highest, kStep);
    Trial best = {-1, 0, 0};
    for (float scale = ieee::multiply(kLowest, nominal); scale < end;
         scale = ieee::multiply(scale, kStep))
      consider(scale, best);
    for (const float step : kFineStep) {
      const float middle = best.scale;
      consider(ieee::multiply(middle, step), best);
      consider(ieee::divide(middle, step), best);
    }
    for (int i = 0; i < kRefits; ++i) consider(best.refit, best);
    return best.refit;
  }

  // The key of core/table_codes.h.
  __device__ int key_of(int leader, const float (&v)[kDim]) const {
    int order_bits = 0, sign_bits = 0, bit = 0;
#pragma unroll
    for (int i = 0; i < kDim; ++i) {
#pragma unroll
      for (int j = i + 1; j < kDim; ++j, ++bit) order_bits |= int(fabsf(v[i]) < fabsf(v[j])) << bit;
      if (i < Key::kSignBits) sign_bits |= int(v[i] < 0) << i;
    }
    return (leader << Key::kOrderBits | order_bits) << Key::kSignBits | sign_bits;
  }

  __device__ void write_codes(float scale) const {
    uint8_t* names = code_row();
    each_group([&](int64_t group, const float (&v)[kDim]) {
      float m[kDim];
      sort(v, m);
      int leader = 0;
      visit_leaders(m, scale, [&](int k, float, float) { leader = k; });
      names[group] = task_.names.byte[key_of(leader, v)];
    });
    if constexpr (Code::kSignsApart) {
      uint8_t* signs = names + groups_;
      for (int64_t byte = lane_; byte < task_.cols / 8; byte += 32) {
        int bits = 0;
        for (int i = 0; i < 8; ++i) bits |= int(w_[8 * byte + i] < 0) << i;
        signs[byte] = uint8_t(bits);
      }
    }
  }

  __device__ void write_nothing(uint16_t scale) const {
    if (lane_ == 0) task_.row_scale[row_] = scale;
    for (int64_t i = lane_; i < table_row_bytes(kBits, task_.cols); i += 32) code_row()[i] = 0;
  }

  const Task<kBits>& task_;
  const int64_t row_;
  const float* const w_;
  const int64_t groups_;
  const int lane_;
  float factor_[2];
};

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ Task<kBits> task) {
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / 32;
  if (row < task.rows) RowQuantizer<kBits>(task, row).run();
}

template <int kBits>
cudaError_t launch(const TableQuantizeCuda& t, cudaStream_t stream) {
  Task<kBits> task = {t.w, t.rows, t.cols, t.code, t.row_scale, t.refusal, {}};
  std::copy_n(t.names, TableKey<kBits>::kCount, task.names.byte);
  const auto blocks = unsigned((t.rows + kRows - 1) / kRows);
  quantize_kernel<kBits><<<blocks, kThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace

int table_quantize_cuda(const TableQuantizeCuda& task, void* stream) {
  if (task.rows == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  return task.bits == 2   ? launch<2>(task, queue)
         : task.bits == 3 ? launch<3>(task, queue)
                          : launch<4>(task, queue);
}

}  // namespace pvq
