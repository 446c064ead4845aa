// What the bindings of every op need to know of a tensor: its dtype, its memory format, its sizes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>

#include "vmf/dtype.h"

namespace vmf::bindings {

using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return DType::f64;
    case torch::headeronly::ScalarType::Float:
      return DType::f32;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::bf16;
    case torch::headeronly::ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, "the dtype must be float64, float32, bfloat16 or float16");
  }
}

// The rule of vmf_kernels/layout.py: channels vary fastest, and there is more than one position.
inline bool is_channels_last(const Tensor& tensor) {
  return tensor.stride(1) == 1 && tensor.size(2) * tensor.size(3) * tensor.size(4) > 1;
}

inline torch::headeronly::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? torch::headeronly::MemoryFormat::ChannelsLast3d
                       : torch::headeronly::MemoryFormat::Contiguous;
}

// (N, C, T, H, W) dense in the given order; the tensor itself if it already is.
inline Tensor dense(const Tensor& tensor, bool channels_last) {
  return torch::stable::contiguous(tensor, memory_format(channels_last));
}

// Uninitialised, dense, with dtype and device of `like`.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                    bool channels_last = false) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              memory_format(channels_last));
}

// Runs `work(begin, end)` over [0, items) on torch's threads; each thread gets at least
// `min_operations` of the `operations` that all items take together.
template <class Work>
void parallel(int64_t items, double operations, const Work& work) {
  constexpr double kMinOperations = 1e5;  // about as long as waking a thread takes
  const double grain = static_cast<double>(items) * kMinOperations / (operations + 1);
  torch::stable::parallel_for(0, items, static_cast<int64_t>(grain) + 1, work);
}

}  // namespace vmf::bindings
