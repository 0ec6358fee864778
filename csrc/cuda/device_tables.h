// Tables that a device keeps for the life of the process.
#pragma once

#include <stddef.h>

namespace pvq {

// Memory of the current device, and a copy to it that has ended on return. Both may be called while
// a stream is captured: nothing of theirs becomes part of the graph. Return a cudaError_t.
int allocate_tables(size_t bytes, void** memory);
// Frees the memory if the copy fails.
int copy_tables(const void* source, size_t bytes, void* memory);

}  // namespace pvq
