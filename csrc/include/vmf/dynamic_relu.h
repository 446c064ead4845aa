// Dynamic ReLU, max(a1 x, a2 x) with slopes per sample and channel, on raw pointers. No torch.
//
// Each function works on the items [begin, end) of [0, ..._items(shape)); any split of that range,
// in any order and on any threads, gives the same bits.
#pragma once

#include <cstdint>

#include "vmf/dtype.h"

namespace vmf {

struct DynamicReluShape {
  int64_t batch;
  int64_t channels;
  int64_t positions;   // product of the spatial sizes
  bool channels_last;  // features are (batch, positions, channels) in memory, else (batch,
                       // channels, positions); both dense
  DType dtype;         // of every tensor here; arithmetic is in float (f64: in double)
};

// `a1` and `a2` are dense (batch, channels).
int64_t dynamic_relu_items(const DynamicReluShape& shape);
void dynamic_relu(const DynamicReluShape& shape, const void* features, const void* a1,
                  const void* a2, void* output, int64_t begin, int64_t end);

// The items write grad_features, and partial sums of the slopes' gradients into `scratch` (of
// ..._scratch bytes, which need not be initialised); ..._finish adds those in a fixed order.
int64_t dynamic_relu_backward_scratch(const DynamicReluShape& shape);
void dynamic_relu_backward(const DynamicReluShape& shape, const void* grad_output,
                           const void* features, const void* a1, const void* a2,
                           void* grad_features, void* scratch, int64_t begin, int64_t end);
void dynamic_relu_backward_finish(const DynamicReluShape& shape, const void* scratch, void* grad_a1,
                                  void* grad_a2);

}  // namespace vmf
