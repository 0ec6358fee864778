// What a GPU operator's kernels refuse (cuda/refusal.h), read back once they have run.
#pragma once

#include <optional>

#include "cuda/refusal.h"
#include "ops/cuda_stream.h"

namespace pvq::ops {

// The word in which kernels report what they refuse; none while the stream is captured.
class Refusals {
 public:
  Refusals(const Tensor& like, void* stream, int64_t total) : stream_(stream), total_(total) {
    if (!cuda_is_capturing(stream)) word_ = torch::stable::new_zeros(like, {1}, ScalarType::Long);
  }

  Refusal refusal() const {
    return {word_ ? static_cast<uint64_t*>(word_->mutable_data_ptr()) : nullptr, total_};
  }

  // The first element refused, or -1. Waits for the stream.
  int64_t first(const char* op) const {
    if (!word_) return -1;
    uint64_t word = 0;
    check_cuda(op, cuda_read_word(word_->const_data_ptr(), &word, stream_));
    return refused_element(word, total_);
  }

 private:
  void* stream_;
  int64_t total_;
  std::optional<Tensor> word_;
};

}  // namespace pvq::ops
