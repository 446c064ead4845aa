// The shape that few_query_attention and few_key_attention share.
#pragma once

#include <cstdint>

#include "vmf/dtype.h"

namespace vmf {

struct AttentionShape {
  int64_t batch;
  int64_t tokens;
  int64_t channels;
  int64_t heads;       // each has channels / heads neighbouring channels
  int64_t positions;   // product of the spatial sizes
  bool channels_last;  // features are (batch, positions, channels) in memory, else (batch,
                       // channels, positions); both dense
  double scale;        // of the scores
  DType dtype;         // of every tensor, unless said otherwise; arithmetic is in float (f64: in
                       // double), the "arithmetic dtype"
};

}  // namespace vmf
