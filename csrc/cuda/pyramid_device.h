// The tables of a pyramid in the memory of a GPU.
#pragma once

#include "core/pyramid.h"

namespace pvq {

struct PyramidDevice {
  PyramidView view;    // of device memory
  const char* tables;  // the rows of splits and their lookups, 16-byte aligned
  int row_bytes;       // of them, a multiple of 16
};

// Tables on the current device, copied there by the first call for (pyramid, device) and kept for
// the life of the process; that call waits for the copy, and may be made while a stream is
// captured. Returns a cudaError_t.
int pyramid_device(const Pyramid& pyramid, const PyramidDevice** result);

}  // namespace pvq
