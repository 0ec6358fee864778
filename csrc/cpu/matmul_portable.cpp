// MatmulKernels for any machine: a vector is four of the compiler's 16-byte vectors.
#include <stdint.h>
#include <string.h>

#include "cpu/matmul_kernels.h"

namespace {

struct Vector {
  typedef float Quad __attribute__((vector_size(16)));
  typedef int32_t QuadWords __attribute__((vector_size(16)));
  struct Words {
    QuadWords q[4];
  };
  // Eight sums, four tile registers and a broadcast fill 13 of 16 registers.
  static constexpr int kVectors = 1, kTokens = 2;
  static constexpr int kDirectTokens = 8, kSums = 2;

  Quad q[4];

  static Vector zero() { return {}; }
  static Vector load(const float* p) {
    Vector r;
    memcpy(r.q, p, sizeof r.q);
    return r;
  }
  static Vector broadcast(const float* p) {
    const Quad x = {*p, *p, *p, *p};
    return {{x, x, x, x}};
  }
  static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
  void store(float* p) const { memcpy(p, q, sizeof q); }
  friend Vector operator+(Vector a, Vector b) {
    return {{a.q[0] + b.q[0], a.q[1] + b.q[1], a.q[2] + b.q[2], a.q[3] + b.q[3]}};
  }
  friend Vector operator*(Vector a, Vector b) {
    return {{a.q[0] * b.q[0], a.q[1] * b.q[1], a.q[2] * b.q[2], a.q[3] * b.q[3]}};
  }

  static Words load_words(const int32_t* p) {
    Words r;
    memcpy(r.q, p, sizeof r.q);
    return r;
  }
  static Vector nibble(Words words, int t) {
    Vector r;
    for (int i = 0; i < 4; ++i)
      r.q[i] = __builtin_convertvector((words.q[i] << (28 - 4 * t)) >> 28, Quad);
    return r;
  }
  static Vector bytes(const int8_t* p) {
    float r[16];
    for (int i = 0; i < 16; ++i) r[i] = p[i];
    return load(r);
  }
};

#include "cpu/matmul_loops.h"

}  // namespace

const pvq::MatmulKernels pvq::matmul_kernels_portable = Loops<Vector>::table();
