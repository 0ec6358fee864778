// Checks of operator arguments: each message names the argument, what it is and what was expected.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "ops/ops.h"

namespace pvq::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError in Python with the message that the parts make. Written without streams: where
// the C++ library is linked statically beside torch's own, a stream's locale crashes.
inline std::string message_part(const char* part) { return part; }
inline std::string message_part(const std::string& part) { return part; }
template <class Number>
std::string message_part(Number part) {
  return std::to_string(part);
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string message;
  ((message += message_part(parts)), ...);
  throw std::runtime_error(message);
}

#define PVQ_CHECK(condition, ...)                             \
  do {                                                        \
    if (!(condition)) [[unlikely]]                            \
      ::pvq::ops::fail(__VA_ARGS__);                          \
  } while (false)

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline std::string shape_name(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline void check_dtype(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<ScalarType> allowed) {
  std::string expected;
  for (ScalarType dtype : allowed) {
    if (t.scalar_type() == dtype) return;
    expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(dtype));
  }
  fail("pvq::", op, ": ", name, " has dtype ", dtype_name(t.scalar_type()),
                  ", expected ", expected);
}

// The dtypes that weights are decoded to.
inline void check_weight_dtype(const char* op, ScalarType dtype) {
  PVQ_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16 || dtype == ScalarType::Double,
                  "pvq::", op, ": dtype is ", dtype_name(dtype),
                  ", expected float32, float16, bfloat16 or float64");
}

inline void check_rank(const char* op, const char* name, const Tensor& t, int64_t rank) {
  PVQ_CHECK(t.dim() == rank, "pvq::", op, ": ", name, " has shape ", shape_name(t),
                  ", expected ", rank, " dimension", rank == 1 ? "" : "s");
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<int64_t> shape) {
  bool equal = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  std::string expected = "[";
  for (int64_t size : shape) {
    equal = equal && t.size(i) == size;
    expected += (i++ ? ", " : "") + std::to_string(size);
  }
  PVQ_CHECK(equal, "pvq::", op, ": ", name, " has shape ", shape_name(t), ", expected ",
                  expected, "]");
}

inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const char* other_name, const Tensor& other) {
  PVQ_CHECK(t.device() == other.device(), "pvq::", op, ": ", name, " and ", other_name,
                  " are on different devices; move them to the same one");
}

inline void check_range(const char* op, const char* name, int64_t value, int64_t low,
                        int64_t high) {
  PVQ_CHECK(value >= low && value <= high, "pvq::", op, ": ", name, " is ", value,
                  ", expected ", low, " to ", high);
}

}  // namespace pvq::ops
