#include "bindings/kept_memory.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vmf::bindings {

using torch::stable::Tensor;

#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE)
namespace {

constexpr size_t kPage = size_t{2} << 20, kWorthIt = 4 * kPage;
constexpr size_t kMostNewest = size_t{512} << 20;  // not offered to the system

struct Block {
  void* data;
  size_t bytes;
  bool offered = false;  // to the system
};

void give_back(Block block) { munmap(block.data, block.bytes); }

// Whole large pages at an address that is one's, or null.
void* map_pages(size_t bytes) {
  void* mapped =
      mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t data = (begin + kPage - 1) / kPage * kPage;
  if (data > begin) munmap(mapped, data - begin);
  const uintptr_t rest = begin + kPage - data;
  if (rest > 0) munmap(reinterpret_cast<void*>(data + bytes), rest);
  madvise(reinterpret_cast<void*>(data), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<void*>(data);
}

// The blocks that wait, oldest first. Nobody waits for the lock: who finds it taken (by another
// thread, or for ever in a process forked meanwhile) deals with the system.
class Blocks {
 public:
  void* take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) {
      auto best = blocks_.end();
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
        const bool fits = bytes <= block->bytes && block->bytes <= bytes + bytes / 4;
        if (fits && (best == blocks_.end() || block->bytes <= best->bytes)) best = block;
      }
      if (best != blocks_.end()) {
        void* data = best->data;
        if (best->bytes > bytes) {
          munmap(static_cast<char*>(data) + bytes, best->bytes - bytes);
        }
        total_ -= best->bytes;
        blocks_.erase(best);
        return data;
      }
    }
    return map_pages(bytes);
  }

  void keep(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > most_) {
      give_back(block);
      return;
    }
    blocks_.push_back(block);
    total_ += block.bytes;
    while (total_ > most_) release_oldest();
    offer_older();
  }

  int64_t total() {
    const std::lock_guard lock(mutex_);
    return static_cast<int64_t>(total_);
  }

  int64_t limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const size_t before = most_;
    most_ = static_cast<size_t>(std::max<int64_t>(bytes, 0));
    while (total_ > most_) release_oldest();
    return static_cast<int64_t>(before);
  }

  int64_t release() {
    const std::lock_guard lock(mutex_);
    const size_t released = total_;
    while (total_ > 0) release_oldest();
    return static_cast<int64_t>(released);
  }

 private:
  void release_oldest() { release(blocks_.begin()); }

  void release(std::vector<Block>::iterator block) {
    give_back(*block);
    total_ -= block->bytes;
    blocks_.erase(block);
  }

  // All but the newest, which are likely to be written soon: the offer is a call to the system that
  // interrupts the other threads.
  void offer_older() {
    const size_t newest = std::min(most_ / 4, kMostNewest);
    size_t newer = 0;
    for (size_t i = blocks_.size(); i-- > 0;) {
      Block& block = blocks_[i];
      newer += block.bytes;
      if (newer <= newest || block.offered) continue;
      block.offered = madvise(block.data, block.bytes, MADV_FREE) == 0;
      if (!block.offered) release(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t total_ = 0;
  // An eighth of the machine's memory.
  size_t most_ =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) / 8;
};

// Never destroyed: tensors may outlive every static.
Blocks& blocks() {
  static auto* blocks = new Blocks;
  return *blocks;
}

}  // namespace

std::optional<Tensor> empty_in_kept_memory(torch::headeronly::ScalarType dtype,
                                           const std::vector<int64_t>& size,
                                           const std::vector<int64_t>& strides) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const auto code = to<int32_t>(from(dtype));
  size_t bytes = aoti_torch_dtype_element_size(code);
  for (const int64_t n : size) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(n), &bytes)) return {};
  }
  if (bytes < kWorthIt || bytes > SIZE_MAX / 2) return {};
  bytes = (bytes + kPage - 1) / kPage * kPage;
  void* data = blocks().take(bytes);
  if (data == nullptr) return {};
  const auto keep = [](void* data, void* bytes) {
    blocks().keep({data, reinterpret_cast<size_t>(bytes)});
  };
  constexpr int32_t kAnyIndex = -1;  // a CPU has no other
  AtenTensorHandle handle;
  const auto error =
      torch_from_blob(data, static_cast<int64_t>(size.size()), size.data(), strides.data(), 0, code,
                      aoti_torch_device_type_cpu(), kAnyIndex, &handle,
                      to<int32_t>(from(torch::headeronly::Layout::Strided)), nullptr, 0, keep,
                      reinterpret_cast<void*>(bytes));
  if (error != AOTI_TORCH_SUCCESS) {
    give_back({data, bytes});
    return {};
  }
  return Tensor(handle);
}

int64_t kept_memory() { return blocks().total(); }
int64_t limit_kept_memory(int64_t bytes) { return blocks().limit(bytes); }
int64_t release_kept_memory() { return blocks().release(); }

#else

std::optional<Tensor> empty_in_kept_memory(torch::headeronly::ScalarType,
                                           const std::vector<int64_t>&,
                                           const std::vector<int64_t>&) {
  return {};
}
int64_t kept_memory() { return 0; }
int64_t limit_kept_memory(int64_t) { return 0; }
int64_t release_kept_memory() { return 0; }

#endif

}  // namespace vmf::bindings
