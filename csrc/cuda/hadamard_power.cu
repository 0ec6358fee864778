// Hadamard transforms of blocks 2^k in float32 registers.
//
// From 2^3 on a thread loads 16-byte vectors. Up to 2^11 a warp holds whole blocks: butterflies
// within the thread, then between lanes by shuffles (a shuffle moves a word a clock and lane
// quarter, so five stages stay under the time of the copy). Above, a block of threads holds one
// block of the transform: registers, the lowest lane bits, one exchange through shared memory,
// registers again.
#include "cuda/device_limits.h"
#include "cuda/hadamard_device.cuh"
#include "cuda/hadamard_kernels.h"

namespace pvq::hadamard {
namespace {

struct Parameters {
  const void* in;
  void* out;
  uint32_t size, cols;
  int log2;
  float scale;
  bool signs_in, signs_out;
  uint64_t seed;
};

// --- up to 2^2: a thread a block -----------------------------------------------------------------

constexpr int kSmallThreads = 256;

template <class In, class Out>
__global__ void __launch_bounds__(kSmallThreads) small_kernel(const Parameters p) {
  const uint32_t start = (blockIdx.x * kSmallThreads + threadIdx.x) << p.log2;
  if (start >= p.size) return;
  const In* in = static_cast<const In*>(p.in) + start;
  Out* out = static_cast<Out*>(p.out) + start;
  const int count = 1 << p.log2;
  const bool signs = p.signs_in || p.signs_out;
  const uint32_t bits = signs ? sign_bits(p.seed, start % p.cols) : 0;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = i < count ? to_float(in[i]) : 0.f;
  if (p.signs_in) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = flip(v[i], bits >> i);
  }
  if (p.log2 > 0) butterflies<2, 0, 1>(v);
  if (p.log2 > 1) butterflies<2, 1, 2>(v);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i] *= p.scale;
    if (p.signs_out) v[i] = flip(v[i], bits >> i);
    if (i < count) store<1>(out + i, v + i);
  }
}

// --- up to 2^11: within a warp -------------------------------------------------------------------

// Element index in a warp's piece of 32 * 2^kLog2Count: vector [0, kV), lane [kV, kV + 5), then the
// vector's number. A piece is one block or several; the last one may be cut short.
constexpr int kWarpThreads = 128;

template <class In, class Out, int kLog2Count>
__global__ void __launch_bounds__(kWarpThreads) warp_kernel(const Parameters p) {
  constexpr int kV = kLog2Vector<In>, kVector = 1 << kV, kCount = 1 << kLog2Count;
  constexpr int kVectors = kCount / kVector;
  const int lane = threadIdx.x % kWarp;
  const uint32_t warp = (blockIdx.x * kWarpThreads + threadIdx.x) / kWarp;
  const uint32_t base = warp * (kWarp * kCount);
  if (base >= p.size) return;
  const In* in = static_cast<const In*>(p.in) + base;
  Out* out = static_cast<Out*>(p.out) + base;
  const uint32_t size = min(p.size - base, uint32_t{kWarp * kCount});
  const auto index_of = [&](int u) { return static_cast<uint32_t>((u * kWarp + lane) * kVector); };
  const uint32_t first_col = p.signs_in || p.signs_out ? base % p.cols : 0;
  const auto signs_of = [&](int u) {
    const uint32_t col = first_col + index_of(u);  // a piece of one block ends within the row
    return sign_bits(p.seed, kLog2Count > 4 ? col : col % p.cols);
  };

  uint4 raw[kVectors];
#pragma unroll
  for (int u = 0; u < kVectors; ++u)
    raw[u] = index_of(u) < size ? load16(in + index_of(u)) : make_uint4(0, 0, 0, 0);
  if (p.signs_in) {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) raw[u] = flip_vector<In>(raw[u], signs_of(u));
  }

  float v[kCount];
#pragma unroll
  for (int u = 0; u < kVectors; ++u) unpack_vector<In>(raw[u], v + u * kVector);
  butterflies<kLog2Count, 0, kV>(v);
#pragma unroll
  for (int bit = 0; bit < 5; ++bit)
    if (p.log2 > kV + bit) butterflies_between_lanes<kCount>(v, 1 << bit);
  if (p.log2 > kV + 5) butterflies<kLog2Count, kV, kV + 1>(v);
  if (p.log2 > kV + 6) butterflies<kLog2Count, kV + 1, kLog2Count>(v);

#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    float* group = v + u * kVector;
    const uint32_t bits = p.signs_out ? signs_of(u) : 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) group[i] = flip(group[i] * p.scale, bits >> i);
    if (index_of(u) < size) store<kVector>(out + index_of(u), group);
  }
}

// --- above: a block of threads -------------------------------------------------------------------

// Index bits of a block of 2^kLog2, before and after the exchange; a thread holds 2^kLog2Count.
//   before   [0, kV) a vector    [kV, kTop) threads, the lowest kLanes of them by shuffles
//            [kTop, kLog2) the vector's number
//   after    [0, kLog2Pair) stored together    [kLog2Pair, kMiddle) threads
//            [kMiddle, kTop) registers: the stages still missing    [kTop, kLog2) threads
template <class In, int kLog2_, int kLog2Count_, int kLanes_>
struct Exchange {
  static constexpr int kLog2 = kLog2_, kLog2Count = kLog2Count_, kLanes = kLanes_;
  static constexpr int kV = kLog2Vector<In>, kTop = kLog2 - (kLog2Count - kV);
  static constexpr int kMiddle = kV + kLanes, kLog2Pair = kLog2Count - (kTop - kMiddle);
  static constexpr int kThreads = 1 << (kLog2 - kLog2Count);
  static constexpr int kVectors = 1 << (kLog2Count - kV), kPairs = 1 << (kTop - kMiddle);
  static constexpr int kDataBytes = 4 << kLog2, kSignBytes = (1 << kLog2) / 8;
  // 512 resident threads a multiprocessor leave 128 registers each.
  static constexpr int kBlocksPerSm = kThreads < 512 ? 512 / kThreads : 1;
  static_assert(kLog2Pair >= 0 && kLog2Pair <= kV && kLanes <= 5 && kThreads >= kWarp &&
                kThreads <= 1024);
  static_assert((kMiddle - kLog2Pair) + (kLog2 - kTop) == kLog2 - kLog2Count);

  // Where an element stands in shared memory: 16-byte chunks (4 elements) are permuted within 128
  // bytes so that both sides meet every bank once. Writing, eight lanes hold every second chunk:
  // bit 3 of the chunk goes to bit 0. Reading, lanes run through kMiddle consecutive bits and then
  // through the top ones: where those do not fill 128 bytes, top bits fill the rest. Linear over
  // GF(2): slot(a | b) = slot(a) ^ slot(b).
  static constexpr int kChunkBits = kMiddle - 2 < 3 ? kMiddle - 2 : 3;
  __host__ __device__ static constexpr int slot(int index) {
    const int top = index >> kTop & ((1 << (3 - kChunkBits)) - 1);
    return index ^ (index >> 5 & 1) << 2 ^ top << (2 + kChunkBits);
  }
  // slot(base | offset) given slot(base): the offset's high bits stay an immediate.
  __device__ static int slot_at(int base_slot, int offset) {
    return (base_slot ^ (slot(offset) & 31)) + (slot(offset) & ~31);
  }
};

template <class In, class Out, class X>
__global__ void __launch_bounds__(X::kThreads, X::kBlocksPerSm) block_kernel(const Parameters p) {
  extern __shared__ uint4 shared[];
  float* data = reinterpret_cast<float*>(shared);
  uint64_t* signs = reinterpret_cast<uint64_t*>(data + (1 << X::kLog2));
  constexpr int kVector = 1 << X::kV, kCount = 1 << X::kLog2Count;
  const uint32_t block_start = blockIdx.x << X::kLog2;
  const In* in = static_cast<const In*>(p.in) + block_start;
  Out* out = static_cast<Out*>(p.out) + block_start;

  const int loaded = threadIdx.x << X::kV;
  uint4 raw[X::kVectors];
#pragma unroll
  for (int u = 0; u < X::kVectors; ++u) raw[u] = load16(in + loaded + (u << X::kTop));

  if (p.signs_in || p.signs_out) {  // while the loads are under way
    const uint32_t first = block_start % p.cols >> 6;
    for (int q = threadIdx.x; q < X::kSignBytes / 8; q += X::kThreads)
      signs[q] = sign_word(p.seed, first + q);
  }
  if (p.signs_in) {
    __syncthreads();  // signs
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(signs);
#pragma unroll
    for (int u = 0; u < X::kVectors; ++u) {
      const int index = loaded + (u << X::kTop);
      raw[u] = flip_vector<In>(raw[u], uint32_t{bytes[index >> 3]} >> (index & 7));
    }
  }

  float v[kCount];
#pragma unroll
  for (int u = 0; u < X::kVectors; ++u) unpack_vector<In>(raw[u], v + u * kVector);
  butterflies<X::kLog2Count, 0, X::kLog2Count>(v);
#pragma unroll
  for (int bit = 0; bit < X::kLanes; ++bit) butterflies_between_lanes<kCount>(v, 1 << bit);

  const int write_slot = X::slot(loaded);
#pragma unroll
  for (int u = 0; u < X::kVectors; ++u) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4)
      store<4>(data + X::slot_at(write_slot, (u << X::kTop) + i), v + u * kVector + i);
  }
  __syncthreads();  // data, and all of the input has been read: out may be in

  constexpr int kPair = 1 << X::kLog2Pair, kLowThreads = 1 << (X::kMiddle - X::kLog2Pair);
  const int low = threadIdx.x % kLowThreads, high = threadIdx.x / kLowThreads;
  const int stored = low << X::kLog2Pair | high << X::kTop;
  const int read_slot = X::slot(stored);
#pragma unroll
  for (int j = 0; j < X::kPairs; ++j) {
    const float* from = data + X::slot_at(read_slot, j << X::kMiddle);
    float* to = v + j * kPair;
    if constexpr (kPair == 1) *to = *from;
    if constexpr (kPair == 2) {
      const float2 pair = *reinterpret_cast<const float2*>(from);
      to[0] = pair.x;
      to[1] = pair.y;
    }
    if constexpr (kPair == 4) unpack_vector<float>(load16(from), to);
  }
  butterflies<X::kLog2Count, X::kLog2Pair, X::kLog2Count>(v);
#pragma unroll
  for (int j = 0; j < X::kPairs; ++j) {
    const int index = stored + (j << X::kMiddle);
    float* group = v + j * kPair;
    uint32_t bits = 0;
    if (p.signs_out) bits = reinterpret_cast<const uint32_t*>(signs)[index >> 5] >> (index & 31);
#pragma unroll
    for (int i = 0; i < kPair; ++i) group[i] = flip(group[i] * p.scale, bits >> i);
    store<kPair>(out + index, group);
  }
}

// --- launches ------------------------------------------------------------------------------------

cudaError_t launch(void (*kernel)(Parameters), uint32_t blocks, int threads, int shared_bytes,
                   cudaStream_t stream, const Parameters& parameters) {
  constexpr int kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking)
    if (const int error = allow_shared_memory(reinterpret_cast<const void*>(kernel)))
      return cudaError_t(error);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, parameters);
}

template <class In, class Out, int kLog2Count>
cudaError_t launch_warps(const Parameters& p, cudaStream_t stream) {
  constexpr uint32_t kPerBlock = kWarpThreads << kLog2Count;
  return launch(warp_kernel<In, Out, kLog2Count>, (p.size + kPerBlock - 1) / kPerBlock,
                kWarpThreads, 0, stream, p);
}

template <class In, class Out>
cudaError_t launch_small(const Parameters& p, cudaStream_t stream) {
  return launch(small_kernel<In, Out>, ((p.size >> p.log2) + kSmallThreads - 1) / kSmallThreads,
                kSmallThreads, 0, stream, p);
}

template <class In, class Out, int kLog2, int kLog2Count, int kLanes>
cudaError_t launch_blocks(const Parameters& p, cudaStream_t stream) {
  using X = Exchange<In, kLog2, kLog2Count, kLanes>;
  return launch(block_kernel<In, Out, X>, p.size >> kLog2, X::kThreads,
                X::kDataBytes + X::kSignBytes, stream, p);
}

// Few transforms are spread over many threads each (8 KB and more in flight for one row); many take
// 64 elements a thread, so that one exchange and one to four shuffled stages remain.
template <class In, class Out>
cudaError_t launch_typed(const Parameters& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const bool few = p.size >> p.log2 <= 4u * static_cast<uint32_t>(sms);
  if constexpr (std::is_same_v<In, Out>) {
    switch (p.log2) {
      case 11:
        if (few) return launch_blocks<In, Out, 11, 4, 5>(p, stream);
        break;
      case 12:
        if (few) return launch_blocks<In, Out, 12, 4, 5>(p, stream);
        break;
      case 13:
        return few ? launch_blocks<In, Out, 13, 4, 5>(p, stream)
                   : launch_blocks<In, Out, 13, 6, 2>(p, stream);
      case 14:
        return few ? launch_blocks<In, Out, 14, 5, 5>(p, stream)
                   : launch_blocks<In, Out, 14, 6, 3>(p, stream);
      case 15:
        return few ? launch_blocks<In, Out, 15, 5, 5>(p, stream)
                   : launch_blocks<In, Out, 15, 6, 4>(p, stream);
    }
  }
  switch (p.log2) {
    case 0:
    case 1:
    case 2:
      return launch_small<In, Out>(p, stream);
    case 10:
      return launch_warps<In, Out, 5>(p, stream);
    case 11:
      return launch_warps<In, Out, 6>(p, stream);
    case 12:
      return launch_blocks<In, Out, 12, 6, 1>(p, stream);
    default:
      return launch_warps<In, Out, 4>(p, stream);
  }
}

}  // namespace

int power_shared_bytes(int log2) { return log2 < 12 ? 0 : (4 << log2) + (1 << log2) / 8; }

cudaError_t launch_power(const PowerLaunch& launch, cudaStream_t stream) {
  const HadamardCuda& task = launch.task;
  const Parameters p{
      task.in,     task.out,     static_cast<uint32_t>(task.size), static_cast<uint32_t>(task.cols),
      launch.log2, launch.scale, task.has_signs && !task.inverse,  task.has_signs && task.inverse,
      task.seed};
  switch (task.type) {
    case HadamardType::kFloat16:
      return launch.from_float32 ? launch_typed<float, Half>(p, stream)
                                 : launch_typed<Half, Half>(p, stream);
    case HadamardType::kBFloat16:
      return launch.from_float32 ? launch_typed<float, BFloat16>(p, stream)
                                 : launch_typed<BFloat16, BFloat16>(p, stream);
    default:
      return launch_typed<float, float>(p, stream);
  }
}

}  // namespace pvq::hadamard
