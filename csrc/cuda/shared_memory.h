// Shared memory of the products by address.
#pragma once

namespace pvq {

constexpr int kSharedBytes = 227 * 1024;
// Shared addresses of a block start at 1 KB; what lies below belongs to the system.
constexpr int kFirstAddress = 1024;
constexpr int kEndAddress = kSharedBytes + kFirstAddress;
// 64 KB of table, of whose rows of 256 bytes the table fills the first halves.
constexpr int kTableAddress = kFirstAddress;
constexpr int kTableEnd = kTableAddress + 0x10000;
constexpr int kTableGapBytes = 0x8000;

}  // namespace pvq
