// Into how many parts blocks divide T.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"

namespace vmf::cuda {

// Frames that take as long as what a block does before its first one.
constexpr int64_t kStart = 2;

// Where `blocks` blocks go through all frames, and `resident` of them run at once: the parts of T
// with which the longest row of blocks, one after the other, has the fewest frames to read. Each
// part reads `reach` frames more than it has.
inline int64_t time_parts(int64_t blocks, int64_t frames, int64_t reach, int64_t most_parts,
                          int64_t resident) {
  int64_t best = 1, least = 0;
  const int64_t enough = divide_up(4 * resident, std::max<int64_t>(blocks, 1));
  for (int64_t parts = 1; parts <= std::clamp<int64_t>(most_parts, 1, enough); ++parts) {
    const int64_t time = divide_up(frames, parts), real = divide_up(frames, time);
    const int64_t rounds = divide_up(std::max<int64_t>(blocks, 1) * real, resident);
    const int64_t work = rounds * (std::min(time + reach, frames) + kStart);
    if (parts == 1 || work < least) best = parts, least = work;
  }
  return best;
}

}  // namespace vmf::cuda
