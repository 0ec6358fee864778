// Reads and checks the stored form of a matrix among an operator's arguments.
#pragma once

#include <atomic>
#include <string>

#include "core/gain.h"
#include "core/pyramid.h"
#include "cpu/code.h"
#include "ops/checks.h"

namespace pvq::ops {

// Limits of dim and pulses for everything that is stored: 1 <= dim <= 256, 1 <= pulses <= 4096.
const Pyramid& checked_pyramid(const char* op, int64_t dim, int64_t pulses);

// Levels for the operator's arguments; the message names the argument at fault.
const std::vector<float>& checked_levels(const char* op, int64_t dim, int64_t cols,
                                         int64_t gain_bits, const std::string& law);

// The stored form, checked for dtype, device, shape and contiguity (copied if need be), with the
// tensors that keep its memory alive.
struct StoredCode {
  CodeView view;
  Tensor index, gain, row_scale;
};

StoredCode checked_code(const char* op, const Tensor& index, const Tensor& gain,
                        const Tensor& row_scale, int64_t dim, int64_t pulses, int64_t gain_bits,
                        const std::string& law, int64_t cols);

// Streams of indices, checked for dtype, shape and contiguity (copied if need be).
struct StoredIndex {
  Tensor index;
  const Pyramid& pyramid;
  int64_t rows, groups, stride;
};

StoredIndex checked_index(const char* op, const Tensor& index, int64_t dim, int64_t pulses,
                          int64_t groups);

// The smallest element that any thread refuses, so that a message does not depend on their timing.
class FirstRefused {
 public:
  void report(int64_t element) {
    int64_t known = element_;
    while (known < 0 || element < known)
      if (element_.compare_exchange_weak(known, element)) return;
  }
  int64_t element() const { return element_; }  // -1 if there was none

 private:
  std::atomic<int64_t> element_ = -1;
};

// What an operator says when a stored index names no point.
[[noreturn]] void refuse_index(const char* op, int64_t row);

}  // namespace pvq::ops
