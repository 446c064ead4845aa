// What the bindings of every op need to know of a tensor: its dtype, its memory format, its sizes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/kept_memory.h"
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

// Strides of a dense (N, C, *spatial) tensor in the given order.
inline Ints dense_strides(const Ints& size, bool channels_last) {
  Ints strides(size.size(), 1);
  int64_t next = 1;
  const auto take = [&](size_t dim) {
    strides[dim] = next;
    next *= std::max<int64_t>(size[dim], 1);
  };
  if (channels_last) take(1);
  for (size_t dim = size.size(); dim-- > 0;) {
    if (!channels_last || dim != 1) take(dim);
  }
  return strides;
}

inline bool is_dense(const Tensor& tensor, bool channels_last) {
  const Ints size = sizes_of(tensor), strides = dense_strides(size, channels_last);
  const auto actual = tensor.strides();
  for (size_t dim = 0; dim < size.size(); ++dim) {
    if (size[dim] != 1 && actual[dim] != strides[dim]) return tensor.numel() == 0;
  }
  return true;
}

// (N, C, *spatial) dense in the given order; the tensor itself if it already is.
inline Tensor dense(const Tensor& tensor, bool channels_last = false) {
  if (is_dense(tensor, channels_last)) return tensor;
  if (!channels_last) return torch::stable::contiguous(tensor);
  if (tensor.dim() == 5) {
    return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast3d);
  }
  return channels_from_end(torch::stable::contiguous(channels_to_end(tensor)));
}

// While one exists, this thread takes fresh memory without PyTorch's dispatcher (see direct.h).
// Nothing fills that memory, so it must not exist where the user asked PyTorch to.
class DirectCall {
 public:
  DirectCall() { active = true; }
  ~DirectCall() { active = false; }
  DirectCall(const DirectCall&) = delete;
  DirectCall& operator=(const DirectCall&) = delete;

  static inline thread_local bool active = false;
};

// Asks the system to back a large tensor with pages of 2 MiB: it maps 10,000 of 4 KiB for 40 MB,
// one by one, when they are first written. Smaller blocks the C library mostly hands out again, and
// a rare fault of a large page costs more than those of small ones (6 ms for 10 MB, instead of 2).
inline void prefer_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20, kWorthIt = 16 * kPage;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes < kWorthIt || !tensor.is_cpu()) return;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + bytes) / kPage * kPage;
  // Advice: where it is not taken, nothing is lost.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

// Uninitialised, of the given size and strides, on the device of `like`.
inline Tensor empty_strided(const Tensor& like, torch::headeronly::ScalarType dtype,
                            const Ints& size, const Ints& strides) {
  using torch::stable::detail::from;
  if (DirectCall::active) {
    if (auto kept = empty_in_kept_memory(dtype, size, strides)) return *std::move(kept);
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(size.size()), size.data(), strides.data(),
        torch::stable::detail::to<int32_t>(from(dtype)), aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
  std::array<StableIValue, 6> stack{from(torch::headeronly::IntHeaderOnlyArrayRef(size)),
                                    from(torch::headeronly::IntHeaderOnlyArrayRef(strides)),
                                    from(std::optional(dtype)),
                                    from(std::nullopt),
                                    from(std::optional(like.device())),
                                    from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  auto result = torch::stable::detail::to<Tensor>(stack[0]);
  prefer_huge_pages(result);
  return result;
}

// Uninitialised, dense, with dtype and device of `like`.
inline Tensor empty(const Tensor& like, const Ints& size, bool channels_last = false) {
  return empty_strided(like, like.scalar_type(), size, dense_strides(size, channels_last));
}

// Uninitialised memory on the device of `like`.
inline Tensor bytes(const Tensor& like, int64_t count) {
  return empty_strided(like, torch::headeronly::ScalarType::Byte, {count}, {1});
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
