// What a device has that launches depend on.
#pragma once

namespace pvq {

struct DeviceLimits {
  int multiprocessors = 0, shared = 0, major = 0;
};

// Of the current device, read once.
const DeviceLimits& device_limits();

}  // namespace pvq
