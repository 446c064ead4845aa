// Memory that a kernel needs for the time of one call.
#pragma once

#include <cstdint>

namespace vmf {

// At least `bytes`, aligned to a cache line, not initialised; owned by the calling thread, which
// keeps it for its next call (fresh pages from the system would cost more than most kernels).
// Valid until the thread asks again.
void* workspace(int64_t bytes);

// The same for small arrays, a stack: what was taken last is given back first. The C library would
// want a fifth of a small call's time for them.
void* take(int64_t bytes);
void give_back(void* data);

}  // namespace vmf
