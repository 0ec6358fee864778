// Shared memory of the products by address.
#pragma once

namespace pvq {

// Shared addresses of a block start at 1 KB; what lies below belongs to the system.
constexpr int kFirstAddress = 1024;
// A block may have all of an SM, or leave 1 KB to another block's system: that of the kernel that
// narrows activations (activations.cu).
constexpr int kAllEndAddress = 228 * 1024;
constexpr int kEndAddress = 227 * 1024;
constexpr int kSharedBytes = kEndAddress - kFirstAddress;
// 64 KB of table, of whose rows of 256 bytes the table fills the first halves.
constexpr int kTableAddress = kFirstAddress;
constexpr int kTableEnd = kTableAddress + 0x10000;
constexpr int kTableGapBytes = 0x8000;

}  // namespace pvq
