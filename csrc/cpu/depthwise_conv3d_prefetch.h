// Asks for memory ahead of its use, a little with each row of arithmetic.
//
// A group's frame is read in one go and then computed with for long. Left alone, memory would idle
// through the arithmetic and the arithmetic would wait for memory; so the next frame is fetched
// into the second-level cache meanwhile, line by line in the order of addresses. That pays
// channels-last. Contiguous lanes are long runs, which the hardware's own prefetcher follows
// better.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

class Prefetcher {
 public:
  // Of an activation with `channels` channels, `columns` columns a row and at most `lanes` lanes.
  // To be written or read.
  template <typename T>
  Prefetcher(bool written, const T* data, const Strides& strides, bool channels_last,
             int64_t channels, int64_t columns, int64_t lanes)
      : written_(written),
        data_(reinterpret_cast<const char*>(data)),
        element_(sizeof(T)),
        strides_(strides),
        channels_last_(channels_last),
        channels_(channels),
        columns_(columns),
        runs_(lanes) {}

  // Of these lanes, `share` have one channel or each has `repeat`.
  void attach(Range lanes, int64_t repeat, int64_t share) {
    count_ = 0;
    if (!channels_last_) return;
    const int64_t per_sample = channels_ / repeat * share;
    for (int64_t lane = lanes.begin; lane < lanes.end;) {
      const int64_t first = lane % per_sample, end = smaller(per_sample, first + lanes.end - lane);
      const int64_t channel = first * repeat / share;
      const int64_t size = (end - 1) * repeat / share + repeat - channel;
      runs_[count_++] = {lane / per_sample * strides_.n + channel, size};
      lane += end - first;
    }
  }

  // The frame and rows to be fetched in about `calls` calls of advance().
  void start(int64_t t, Range rows, int64_t calls) {
    offset_ = t * strides_.t + rows.begin * strides_.h;
    positions_ = rows.size() * columns_;
    run_ = step_ = 0;
    at_ = end_ = nullptr;
    int64_t lines = 0;
    for (int64_t i = 0; i < count_; ++i) lines += steps(i) * (bytes(i) / kLine + 1);
    lines_ = ceil_div(lines, larger(calls, 1));
  }

  void stop() {
    run_ = count_;
    at_ = end_ = nullptr;
  }

  __attribute__((noinline)) void advance() {
    for (int64_t left = lines_; left > 0;) {
      if (at_ >= end_ && !next_piece()) return;
      const int64_t lines = smaller(left, (end_ - at_ + kLine - 1) / kLine);
      const char* at = at_;
      at_ += lines * kLine;
      left -= lines;
      if (written_) {
        for (; at < at_; at += kLine) prefetch_to_write(at);
      } else {
        for (; at < at_; at += kLine) prefetch(at);
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  // Goes to the next piece of memory without gaps; false if there is none.
  bool next_piece() {
    if (run_ == count_) return false;
    at_ = data_ + (runs_[run_].offset + offset_ + step_ * strides_.w) * element_;
    end_ = at_ + bytes(run_);
    if (++step_ == steps(run_)) {
      step_ = 0;
      ++run_;
    }
    return true;
  }

  struct Run {
    int64_t offset, channels;
  };

  // Neighbouring positions of a run, if all channels are in it, are one piece of memory.
  bool whole(int64_t i) const { return runs_[i].channels == channels_; }
  int64_t steps(int64_t i) const { return whole(i) ? 1 : positions_; }
  int64_t bytes(int64_t i) const {
    return runs_[i].channels * (whole(i) ? positions_ : 1) * element_;
  }

  bool written_;
  const char* data_;
  int64_t element_;  // bytes
  Strides strides_;
  bool channels_last_;
  int64_t channels_, columns_;
  Array<Run> runs_;
  int64_t count_ = 0;
  int64_t offset_ = 0, positions_ = 0, lines_ = 0;
  int64_t run_ = 0, step_ = 0;                 // the next piece
  const char *at_ = nullptr, *end_ = nullptr;  // the next line, and where its piece ends
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
