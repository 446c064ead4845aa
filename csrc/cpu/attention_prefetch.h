// Asks for the features of the next block while this one is computed.
//
// Memory is idle while a block, which is in the cache by then, is computed; and what a block takes
// is too short for some hardware to see the streams of its rows (prefetch_pays_from).
#pragma once

#include "cpu/attention_blocks.h"
#include "vmf/isa.h"

namespace vmf {
namespace VMF_ISA {
namespace {

class Ahead {
 public:
  // The block after that of `count` positions from `begin`; the next sample's first after the last.
  // It is asked for in `steps` steps. The pass reads and writes so many `tensors` like the
  // features.
  template <typename T>
  Ahead(const AttentionShape& s, const Item& item, int64_t begin, int64_t count, const T* sample,
        int64_t steps, int64_t tensors) {
    constexpr int64_t size = sizeof(T);
    if (tensors * s.batch * s.channels * s.positions * size < prefetch_pays_from()) return;
    int64_t first = begin + count;
    if (first >= s.positions) {
      if (item.sample + 1 >= s.batch) return;
      first = 0;
      sample += s.channels * s.positions;
    }
    const int64_t n = std::min(count, s.positions - first);
    const char* p = reinterpret_cast<const char*>(sample);
    if (s.channels_last) {
      row_ = p + first * s.channels * size;
      bytes_ = n * s.channels * size;
    } else {
      row_ = p + first * size;
      bytes_ = n * size;
      stride_ = s.positions * size;
      rows_ = s.channels;
    }
    share_ = ceil_div(rows_ * ceil_div(bytes_, kLine), steps);
  }

  void step() {
    for (int64_t i = 0; i < share_ && rows_ > 0; ++i) {
      prefetch(row_ + at_);
      at_ += kLine;
      if (at_ >= bytes_) {
        at_ = 0;
        row_ += stride_;
        --rows_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_ = nullptr;
  int64_t bytes_ = 0, stride_ = 0, rows_ = 1, at_ = 0, share_ = 0;
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
