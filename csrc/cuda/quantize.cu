// The stored form of a matrix: nearest points and their amplitudes (nearest.cu), the fit of gains
// and row scale here (core/fit.h, one warp a row), then the indices (encode.cu).
//
// Rows go through in batches, so that points and amplitudes, which exist only between these steps,
// take little memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/bfloat16.h"
#include "core/bits.h"
#include "core/fit.h"
#include "core/gain.h"
#include "core/pyramid.h"
#include "cuda/encode.h"
#include "cuda/lanes.cuh"

namespace pvq {
namespace {

constexpr int64_t kBatch = int64_t(1) << 26;  // weights; 128 MiB of points
constexpr int kThreads = 128;
constexpr int kRows = kThreads / 32;  // of a block

struct FitTask {
  const float* amplitude;  // [rows, groups]
  int64_t rows, groups;
  int dim, gain_bits;
  int16_t* y;           // [rows, groups, dim]: groups nearer to zero than to a level become zero
  uint8_t* gain;        // [rows, gain_stride]
  uint16_t* row_scale;  // [rows]
  float level[1 << kMaxGainBits];
};

__global__ void __launch_bounds__(kThreads) fit_kernel(const __grid_constant__ FitTask task) {
  __shared__ float level[1 << kMaxGainBits];
  const int gain_bits = task.gain_bits;
  for (int i = threadIdx.x; i < 1 << gain_bits; i += kThreads) level[i] = task.level[i];
  __syncthreads();
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / 32;
  if (row >= task.rows) return;

  const fit::Levels levels = {level, 1 << gain_bits};
  const float* amplitude = task.amplitude + row * task.groups;
  const double scale = fit::row_scale(WarpRow(), amplitude, task.groups, task.dim, levels);
  const uint16_t stored_bits = to_bfloat16(float(scale));
  const double stored = from_bfloat16(stored_bits);
  const int lane = threadIdx.x % 32;
  if (lane == 0) task.row_scale[row] = stored_bits;

  // Eight groups a thread fill `gain_bits` whole bytes.
  uint8_t* gain = task.gain + row * bits::bytes_for(task.groups, gain_bits);
  for (int64_t first = 8 * lane; first < task.groups; first += 8 * 32) {
    const int count = int(min(int64_t(8), task.groups - first));
    uint64_t codes = 0;
    for (int i = 0; i < count; ++i) {
      int code = stored > 0 ? fit::nearest_level(amplitude[first + i], stored, levels) : -1;
      if (code < 0) {
        int16_t* y = task.y + (row * task.groups + first + i) * task.dim;
        for (int c = 0; c < task.dim; ++c) y[c] = 0;
        code = 0;
      }
      codes |= uint64_t(code) << (i * gain_bits);
    }
    for (int b = 0; 8 * b < count * gain_bits; ++b)
      gain[first / 8 * gain_bits + b] = uint8_t(codes >> (8 * b));
  }
}

cudaError_t launch_fit(const FitTask& task, cudaStream_t stream) {
  fit_kernel<<<unsigned((task.rows + kRows - 1) / kRows), kThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

int64_t batch_rows(const QuantizeCuda& task) {
  return std::min(task.rows, std::max<int64_t>(1, kBatch / std::max<int64_t>(1, task.cols)));
}

}  // namespace

int64_t quantize_cuda_workspace(const QuantizeCuda& task) {
  const int64_t weights = batch_rows(task) * task.cols;
  return weights / task.pyramid->view().dim * int64_t(sizeof(float)) +
         weights * int64_t(sizeof(int16_t)) + 16;
}

int quantize_cuda(const QuantizeCuda& task, void* workspace, void* stream) {
  const PyramidView& p = task.pyramid->view();
  const int64_t groups = task.cols / p.dim, batch = batch_rows(task);
  const int64_t index_stride = bits::bytes_for(groups, p.index_bits);
  const int64_t gain_stride = bits::bytes_for(groups, task.gain_bits);
  auto* y = static_cast<int16_t*>(workspace);  // first, for its alignment
  auto* amplitude = reinterpret_cast<float*>(y + (batch * task.cols + 7) / 8 * 8);

  FitTask fit{};
  fit.amplitude = amplitude, fit.groups = groups, fit.dim = p.dim, fit.gain_bits = task.gain_bits;
  fit.y = y;
  std::copy(task.levels->begin(), task.levels->end(), fit.level);

  for (int64_t row = 0; row < task.rows; row += batch) {
    const int64_t rows = std::min(batch, task.rows - row);
    const NearestCuda nearest = {task.w + row * task.cols,
                                 RealType::kFloat32,
                                 rows * groups,
                                 p.dim,
                                 p.pulses,
                                 task.quality,
                                 y,
                                 amplitude,
                                 task.refusal,
                                 row * groups};
    if (const int error = nearest_cuda(nearest, stream)) return error;
    fit.rows = rows;
    fit.gain = task.gain + row * gain_stride;
    fit.row_scale = task.row_scale + row;
    if (const int error = launch_fit(fit, static_cast<cudaStream_t>(stream))) return error;
    const EncodeCuda encode = {task.pyramid, y, rows, groups, task.index + row * index_stride, {}};
    if (const int error = encode_cuda(encode, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace pvq
