// What the bindings of every op need to know of a tensor: its dtype, its memory format, its sizes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <vector>

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

using Ints = std::vector<int64_t>;

inline Ints sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// The rule of vmf_kernels/layout.py: channels vary fastest, and there is more than one position.
inline bool is_channels_last(const Tensor& tensor) {
  int64_t positions = 1;
  for (int64_t i = 2; i < tensor.dim(); ++i) positions *= tensor.size(i);
  return tensor.stride(1) == 1 && positions > 1;
}

// Dimension 1 moved behind the others, and back.
inline Tensor channels_to_end(Tensor tensor) {
  for (int64_t i = 1; i + 1 < tensor.dim(); ++i)
    tensor = torch::stable::transpose(tensor, i, i + 1);
  return tensor;
}

inline Tensor channels_from_end(Tensor tensor) {
  for (int64_t i = tensor.dim() - 1; i > 1; --i)
    tensor = torch::stable::transpose(tensor, i, i - 1);
  return tensor;
}

// (N, C, *spatial) dense in the given order; the tensor itself if it already is.
inline Tensor dense(const Tensor& tensor, bool channels_last) {
  if (!channels_last) return torch::stable::contiguous(tensor);
  if (tensor.dim() == 5) {
    return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast3d);
  }
  return channels_from_end(torch::stable::contiguous(channels_to_end(tensor)));
}

// Uninitialised, dense, with dtype and device of `like`.
inline Tensor empty(const Tensor& like, const Ints& size, bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
  const bool strided = channels_last && size.size() != 5;  // no memory format says it
  Ints order = size;
  if (strided) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  const auto format =
      channels_last && !strided ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous;
  Tensor tensor = torch::stable::empty(order, like.scalar_type(), std::nullopt, like.device(),
                                       std::nullopt, format);
  return strided ? channels_from_end(tensor) : tensor;
}

// Uninitialised memory on the device of `like`.
inline Tensor bytes(const Tensor& like, int64_t count) {
  return torch::stable::empty(Ints{count}, torch::headeronly::ScalarType::Byte, std::nullopt,
                              like.device());
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
