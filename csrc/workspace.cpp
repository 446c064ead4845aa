#include "workspace.h"

#include <cstdlib>
#include <new>
#include <utility>

namespace vmf {
namespace {

constexpr int64_t kLine = 64;

// Bytes for small arrays. AddressSanitizer knows the bounds of those that the C library gives.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kStack = 0;
#else
constexpr int64_t kStack = 64 << 10;
#endif

int64_t whole_lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

void* allocate(int64_t bytes) {
  void* data = std::aligned_alloc(kLine, static_cast<size_t>(whole_lines(bytes)));
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block block, stack;  // `bytes` of the stack: those that are taken

}  // namespace

void* workspace(int64_t bytes) {
  if (bytes > block.bytes) {
    std::free(std::exchange(block.data, nullptr));
    block.bytes = 0;
    block.data = allocate(bytes);
    block.bytes = bytes;
  }
  return block.data;
}

void* take(int64_t bytes) {
  const int64_t end = stack.bytes + whole_lines(bytes);
  if (end > kStack) return allocate(bytes);
  if (stack.data == nullptr) stack.data = allocate(kStack);
  return static_cast<char*>(stack.data) + std::exchange(stack.bytes, end);
}

void give_back(void* data) {
  const auto begin = reinterpret_cast<std::uintptr_t>(stack.data);
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  if (stack.data != nullptr && at >= begin && at < begin + kStack) {
    stack.bytes = static_cast<int64_t>(at - begin);
  } else {
    std::free(data);
  }
}

}  // namespace vmf
