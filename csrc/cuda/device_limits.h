// What a device has that launches depend on.
#pragma once

namespace pvq {

struct DeviceLimits {
  int multiprocessors = 0, shared = 0, major = 0;
};

// Of the current device, read once.
const DeviceLimits& device_limits();

// Lets launches of the kernel have all shared memory that the current device has beside what the
// kernel declares. Not what one launch wants: the attribute is the function's, and another thread
// may be about to launch it with more. Returns a cudaError_t.
int allow_shared_memory(const void* kernel);

}  // namespace pvq
