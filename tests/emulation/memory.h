// What the emulation's programs read and write: device memory that shows what nobody wrote.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulation {

struct Memory {
  explicit Memory(int64_t bytes) : size(size_t(bytes)) {
    at = static_cast<uint8_t*>(std::aligned_alloc(256, (size + 256) / 256 * 256));
    std::memset(at, 0xEE, size);
  }
  static Memory read(int64_t bytes) {
    Memory m(bytes);
    if (std::fread(m.at, 1, m.size, stdin) != m.size) std::abort();
    return m;
  }
  void write() const { std::fwrite(at, 1, size, stdout); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(at);
  }
  size_t size;
  uint8_t* at;
};

}  // namespace emulation
