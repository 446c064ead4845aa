// How the weight gradient goes about a shape: what its items are, which taps it sums in one go, and
// whether it reads rows where they lie.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_split.h"
#include "depthwise_conv3d_sums.h"
#include "vec.h"
#include "vmf/isa.h"

namespace vmf {
namespace VMF_ISA {
namespace {

struct SumsPlan {
  explicit SumsPlan(const Shape& s)
      : t(make_axis(s, 0, false)),
        h(make_axis(s, 1, false)),
        w(make_axis(s, 2, false)),
        columns(w),
        channels(s.channels * s.multiplier),
        taps(w.to > 0 ? choose_taps(columns.phase[0]) : 1),
        in_place(readable_in_place(s, w, columns) && !rows_collide(s)),
        fetch_ahead(activation_bytes(s) >= prefetch_pays_from()) {
    const int64_t element = in_place ? storage_bytes(s.dtype) : arithmetic_bytes(s.dtype);
    const int64_t row_bytes = (t.span(1) * columns.width + w.to) * kBlock * element;
    split = Split(w.to > 0 ? s.batch : 0, channels, s.channels_last, t, h, row_bytes, 1, work(s),
                  in_place, true);
  }

  // The first lane of vector `i` of a group, `count` lanes wide. No vector reaches beyond the group
  // if rows are read in place: the last one overlaps the one before.
  int64_t first_lane(Range group, int64_t i, int64_t count) const {
    const int64_t first = group.begin + i * count;
    return in_place ? smaller(first, group.end - count) : first;
  }

  Axis t, h, w;
  Columns columns;
  int64_t channels;
  int taps;          // neighbouring ones that are summed in one go
  bool in_place;     // rows are read where they lie
  bool fetch_ahead;  // the next frames are asked for while these are summed
  Split split;

 private:
  int choose_taps(const Phase& phase) const {
    return suits_taps(w.to, phase.chunk, phase.advance) ? phase.chunk : 1;
  }

  // Whether the rows that a kernel call reads, which the next row wants again, or the next vector
  // if it has the rest of a cache line, are too many for the first-level cache. Packed they are
  // not, but the copy must be worth it. Measured on Zen 5 with 308 layers: 0.7% slower
  // (AVX-512: 1.1%) than with the better choice for each.
  bool rows_collide(const Shape& s) const {
    const int64_t cached = columns_cached(s);
    if (VMF_VECTOR_BYTES == 64 && cached > 48) return false;
    const int64_t kernel_rows =
        smaller(s.kernel[0] * s.kernel[1], most_rows(taps, 1, s.multiplier > 1));
    const int64_t columns = (kernel_rows + h.stride - 1) * w.from + w.to;
    return 10 * columns > (volume(s.kernel) < 27 ? 16 : 11) * cached;
  }
};

// A vector's sums are [tap, then the bias][lane], an item's those of the vectors of a group.
template <typename Real>
int64_t vector_sums(const Shape& s) {
  return (volume(s.kernel) + 1) * kLanes<Real>;
}

int64_t item_sums(const Shape& s, const SumsPlan& plan) {
  return (volume(s.kernel) + 1) * plan.split.group_lanes();
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
