// One small function for each instruction that the compiler does not emit by itself.
#pragma once

#include <cstdint>

namespace pvq {

// The dynamic shared memory of the block.
__device__ __forceinline__ uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t bytes[];
  return bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
  return r;
}

// The product in full. Said so, because the compiler does more where it knows of zero bits.
__device__ __forceinline__ uint2 multiply_wide(uint32_t a, uint32_t b) {
  uint2 r;
  asm("{\n.reg .b64 product;\nmul.wide.u32 product, %2, %3;\nmov.b64 {%0, %1}, product;\n}"
      : "=r"(r.x), "=r"(r.y)
      : "r"(a), "r"(b));
  return r;
}

// a b + c: one instruction, also where the compiler knows a mask of a and would shift it first.
__device__ __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// Each byte becomes 0xFF if its top bit is set, else 0.
__device__ __forceinline__ uint32_t byte_signs(uint32_t word) {
  return byte_permute(word, 0, 0xBA98);
}

// Makes the compiler keep a value in a register, instead of finding it anew where it is used.
__device__ __forceinline__ void hold(uint32_t& value) { asm volatile("" : "+r"(value)); }

// At `address` + kOffset. For tables that nothing writes while they are read: not volatile.
template <int kOffset>
__device__ __forceinline__ uint32_t look_up_word(uint32_t address) {
  uint32_t r;
  asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(r) : "r"(address), "n"(kOffset));
  return r;
}

template <int kOffset>
__device__ __forceinline__ uint32_t look_up_half(uint32_t address) {
  uint16_t r;
  asm("ld.shared.u16 %0, [%1 + %2];" : "=h"(r) : "r"(address), "n"(kOffset));
  return r;
}

template <int kOffset>
__device__ __forceinline__ uint2 look_up_pair(uint32_t address) {
  uint2 r;
  asm("ld.shared.v2.u32 {%0, %1}, [%2 + %3];" : "=r"(r.x), "=r"(r.y) : "r"(address), "n"(kOffset));
  return r;
}

__device__ __forceinline__ uint32_t load_shared_byte(uint32_t address) {
  uint32_t r;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

__device__ __forceinline__ uint32_t load_shared_half(uint32_t address) {
  uint16_t r;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(address));
  return r;
}

__device__ __forceinline__ uint32_t load_shared_word(uint32_t address) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

__device__ __forceinline__ uint2 load_shared_pair(uint32_t address) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(address));
  return r;
}

__device__ __forceinline__ uint4 load_shared_vector(uint32_t address) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address));
  return r;
}

__device__ __forceinline__ void store_shared_word(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// From global memory, past the caches of the SM.
__device__ __forceinline__ uint32_t load_word_now(const void* address) {
  uint32_t r;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(r) : "l"(address) : "memory");
  return r;
}
// Goes on when the value is there, whatever it is.
__device__ __forceinline__ void wait_for_value(uint32_t value) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, %0, 0x7FC1;\n@p nanosleep.u32 1;\n}" ::"r"(value)
               : "memory");
}

// A barrier in shared memory, 8 bytes: a phase ends when `arrivals` threads have arrived and all
// bytes that they announced have been copied.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Between the barriers' initialization and a __syncthreads() before their use.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits for the end of a phase of the given parity; phases count from 0.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Registers of a thread from here on; whole warpgroups call it. What some give up others may take.
template <int kRegisters>
__device__ __forceinline__ void give_registers_up() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A barrier of all `threads` threads of the block, whole warps. Who arrives does not wait.
__device__ __forceinline__ void arrive_at_all(int threads) {
  asm volatile("bar.arrive 0, %0;" ::"r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_of_all(int threads) {
  asm volatile("bar.sync 0, %0;" ::"r"(threads) : "memory");
}
// A barrier of the first `threads` threads of the block, whole warps.
__device__ __forceinline__ void barrier_of_first(int threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}
// A barrier of four warps that follow each other, of which number 4 `team` is the first.
__device__ __forceinline__ void barrier_of_team(int team) {
  asm volatile("bar.sync %0, 128;" ::"r"(4 + team) : "memory");
}
// Turns of two warpgroups, 0 and 1, which need as many as each other: one waits for its turn until
// the other has given it. The first turn of all must be given too.
__device__ __forceinline__ void wait_for_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
}
__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(2 + group) : "memory");
}
// An arrival orders what threads have read of shared memory before what others write, but not
// before what copies write: reads were seen to wait behind loads from global memory while an
// arrival passed them, and the copy that had waited for it came first. So one of these stands
// between.
__device__ __forceinline__ void read_before_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The first lane of a warp arrives when the warp has read `value`. `zero` is the lane's number.
__device__ __forceinline__ void barrier_arrive_with(uint32_t barrier, uint32_t value, int zero) {
  asm volatile(
      "{\n.reg .b32 at;\n.reg .pred first;\n"
      "and.b32 at, %1, %2;\nadd.u32 at, at, %0;\nsetp.eq.s32 first, %2, 0;\n"
      "@first mbarrier.arrive.shared::cta.b64 _, [at];\n}" ::"r"(barrier),
      "r"(value), "r"(zero)
      : "memory");
}
// One thread copies `bytes`, a multiple of 16, which `barrier` expects.
__device__ __forceinline__ void copy_bulk(uint32_t to_shared, const void* from, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to_shared),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned r;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
  return r;
}

// Programmatic dependent launch (sm_90): what stands before the wait overlaps the previous kernel.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The larger one, NaN if one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// 1 / v and 1 / sqrt(v) to within an ulp or two; numbers below 2^-126 are zeros.
__device__ __forceinline__ float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float reciprocal_root(float v) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Of an 8 x 8 matrix of 16-bit values, of which lane 4 g + t has 2 t and 2 t + 1 of row g.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
  return r;
}

// Of tf32 operands the 13 last bits do not count.
// d += a b for tf32 a [16, 8] and b [8, 8].
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b for float16 a [16, 16] and b [16, 8].
__device__ __forceinline__ void mma_float16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for bfloat16.
__device__ __forceinline__ void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a b + c for int8 a [16, 32] and b [32, 8], int32 c and d.
__device__ __forceinline__ void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
}

// The same for uint8 a.
__device__ __forceinline__ void mma_uint8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
}

}  // namespace pvq
