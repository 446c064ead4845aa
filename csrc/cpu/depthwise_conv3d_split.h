// How the work of a depthwise convolution is cut into items, which threads take.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "integers.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// Lanes come in blocks of a cache line of floats, whatever the instruction set.
constexpr int64_t kBlock = 16;

// An item is a group of lanes, some rows and some frames of the tensor written. What they need from
// the tensor read is held in cache while the item moves along T.
struct Item {
  Range lanes, h, t;
};

// How the work is cut into items. Samples come in bunches whose lanes fill blocks well; the blocks
// of a bunch are cut into groups.
class Split {
 public:
  Split() = default;

  // `row_bytes` is what a row takes in cache for a block, over all frames held, with `repeat`
  // channels for each lane; `work` what it all takes. With `whole_vectors` no group has fewer
  // lanes than a vector, nor lanes of two samples. With `shared_bunches` an item may go over
  // several bunches.
  Split(int64_t batch, int64_t channels, bool channels_last, const Axis& t, const Axis& h,
        int64_t row_bytes, int64_t repeat, int64_t work, bool whole_vectors,
        bool shared_bunches = false)
      : batch_(batch), channels_(channels), h_(h.to), t_(t.to), whole_(whole_vectors) {
    if (batch * channels * h.to * t.to == 0) return;
    bunch_ = whole_vectors ? 1 : choose_bunch(channels_last);
    blocks_ = whole_vectors ? larger(1, channels / kBlock) : ceil_div(bunch_ * channels, kBlock);
    bunches_ = ceil_div(batch, bunch_);

    // Enough items to balance many threads, none below some fifty microseconds, or two of ten.
    constexpr int64_t kItems = 32, kWork = 1 << 21, kFew = 2, kFewWork = 1 << 19;
    const int64_t wanted = larger(smaller(kItems, work / kWork), smaller(kFew, work / kFewWork));

    group_size_ = channels_last ? blocks_ : 1;
    h_size_ = h_;
    t_size_ = t_;
    const bool written = whole_vectors && !shared_bunches;
    const bool frames_apart = whole_vectors && t.kernel == 1;
    // Borders of rows with repeated channels cost the most to pack again: 640 KB gave 1.13 and 1.17
    // times the speed of 384 where rows are long, no less elsewhere (Zen 5, 1 MB a core).
    const int64_t cache = (whole_vectors ? 256 : repeat > 1 ? 640 : 384) << 10;

    // Threads whose pieces of the tensor written alternate wait for each other's cache lines, so
    // frames are cut first, for a few threads, where those read by two pieces are read in place.
    // Where rows share nothing, those frames are all that is read twice: it pays while they are in
    // the cache.
    constexpr int64_t kWhole = 4;  // pieces of whole frames
    const bool rows_apart = written && h.kernel == 1 && h.to * row_bytes * blocks_ <= 4 * cache;
    if (written && frames_apart) {
      t_size_ = 1;
    } else if (written && (h.kernel > 1 || rows_apart)) {
      while (t_size_ >= 8 && bunches_ * t_parts() < smaller(wanted, kWhole)) {
        t_size_ = ceil_div(t_size_, 2);
      }
    }

    // What is held should leave room in the second-level cache for what is written. It is as wide
    // as the tensor, where neighbouring lanes are neighbours in memory, and some rows high, as
    // borders are read twice. Frames that share nothing that is read need not be narrow: forward
    // takes the rows of one after the other, in the order of memory, and borders are still in
    // cache.
    const int64_t rows = frames_apart || rows_apart ? 1 : 8;
    while (group_size_ > kWide && h.span(smaller(h_, rows)) * row_bytes * group_size_ > cache) {
      group_size_ = ceil_div(group_size_, 2);
    }
    for (int64_t n = 2; h_size_ > 1 && h.span(h_size_) * row_bytes * group_size_ > cache; ++n) {
      h_size_ = ceil_div(h_, n);
    }

    while (bunches_ * items_per_bunch() < wanted && split_further(t, h)) continue;

    // One item may go over several bunches where that leaves enough.
    shares_ = bunches_;
    if (shared_bunches) shares_ = smaller(bunches_, ceil_div(kItems, items_per_bunch()));
  }

  int64_t items() const { return shares_ * items_per_bunch(); }
  int64_t items_per_bunch() const { return groups() * t_parts() * h_parts(); }
  int64_t groups() const { return ceil_div(blocks_, group_size_); }
  int64_t parts() const { return t_parts() * h_parts(); }                  // of a group
  int64_t group_lanes() const { return (group_size_ + whole_) * kBlock; }  // at most
  int64_t h_size() const { return h_size_; }

  // The bunches that an item goes over.
  Range bunches(int64_t item) const {
    const int64_t share = item / items_per_bunch();
    return {share * bunches_ / shares_, (share + 1) * bunches_ / shares_};
  }

  // The number of the item of this group and part, among those of a share. Threads get neighbouring
  // items: with rows read in place those are groups of the same rows, so that threads rarely write
  // to one cache line; else frames of one group, whose start costs.
  int64_t index(int64_t group, int64_t part) const {
    return whole_ ? part * groups() + group : group * parts() + part;
  }

  Item item(int64_t index, int64_t bunch) const {
    index %= items_per_bunch();
    const int64_t group = whole_ ? index % groups() : index / parts();
    const int64_t part = whole_ ? index / groups() : index % parts();
    const int64_t h = part % h_parts(), t = part / h_parts();
    return {lanes(bunch, group),
            {h * h_size_, smaller((h + 1) * h_size_, h_)},
            {t * t_size_, smaller((t + 1) * t_size_, t_)}};
  }

  // Lanes of a group; the same ones of any bunch but the last have the same channels.
  Range lanes(int64_t bunch, int64_t group) const {
    const int64_t first = bunch * bunch_ * channels_;
    const int64_t end = smaller(batch_, (bunch + 1) * bunch_) * channels_;
    const int64_t size = group_size_ * kBlock;
    const bool last = group + 1 == groups();
    return {smaller(first + group * size, end),
            last ? end : smaller(first + (group + 1) * size, end)};
  }

 private:
  int64_t h_parts() const { return ceil_div(h_, h_size_); }
  int64_t t_parts() const { return ceil_div(t_, t_size_); }

  // Halves the items where it costs least; false if there is nothing left to halve.
  bool split_further(const Axis& t, const Axis& h) {
    const auto half = [](int64_t size) { return ceil_div(size, 2); };
    // How much more is read, or how much slower: the latter a guess.
    const auto more = [&](const Axis& axis, int64_t size) {
      return size == 1 ? 1e9
                       : 2.0 * static_cast<double>(axis.span(half(size))) /
                             static_cast<double>(larger(axis.span(size), 1));
    };
    const double narrower = group_size_ == 1 ? 1e9 : group_size_ > kWide ? 1.1 : 1.5;
    const double shorter = more(t, t_size_), lower = more(h, h_size_);
    if (group_size_ == 1 && t_size_ == 1 && h_size_ == 1) return false;
    int64_t& size = narrower <= shorter && narrower <= lower ? group_size_
                    : shorter <= lower                       ? t_size_
                                                             : h_size_;
    size = half(size);
    return true;
  }

  // The fewest samples that leave the fewest lanes idle. Channels-last memory is read fastest one
  // sample after the other: there, only where a sample alone has few lanes.
  int64_t choose_bunch(bool channels_last) const {
    const int64_t limit = (channels_last ? 4 : 32) * kBlock;
    const double gain = channels_last ? 0.1 : 0.02;
    int64_t best = 1;
    const auto idle = [&](int64_t samples) {
      const int64_t lanes = samples * channels_;
      return static_cast<double>(ceil_div(lanes, kBlock) * kBlock) / static_cast<double>(lanes);
    };
    for (int64_t samples = 2; samples <= batch_ && samples * channels_ <= limit; ++samples) {
      if (idle(samples) < idle(best) - gain) best = samples;
    }
    return best;
  }

  // Blocks, each a cache line of floats, that make memory fast when read in a run.
  static constexpr int64_t kWide = 8;

  int64_t batch_ = 0, channels_ = 0, h_ = 0, t_ = 0;
  bool whole_ = false;  // the last group of a bunch takes a block that is not full
  int64_t bunch_ = 1;   // samples
  int64_t bunches_ = 0, blocks_ = 0, shares_ = 0;
  int64_t group_size_ = 1, h_size_ = 1, t_size_ = 1;
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
