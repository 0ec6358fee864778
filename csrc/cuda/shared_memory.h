// Shared memory: what is the system's, and that of the products by address.
#pragma once

namespace pvq {

// Of an SM's shared memory, for each block.
constexpr int kSystemBytes = 1024;

// A block's own shared addresses are those behind that.
constexpr int kFirstAddress = kSystemBytes;
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
