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

// The block's memory, at least `bytes`: what was in it is lost if it has less.
void* reserve(Block& block, int64_t bytes) {
  if (bytes > block.bytes) {
    std::free(std::exchange(block.data, nullptr));
    block.bytes = 0;
    block.data = allocate(bytes);
    block.bytes = bytes;
  }
  return block.data;
}

thread_local Block block, stack;
thread_local int64_t taken = 0;  // bytes of the stack

}  // namespace

void* workspace(int64_t bytes) { return reserve(block, bytes); }

void* take(int64_t bytes) {
  const int64_t end = taken + whole_lines(bytes);
  if (end > kStack) return allocate(bytes);
  return static_cast<char*>(reserve(stack, kStack)) + std::exchange(taken, end);
}

void give_back(void* data) {
  const auto offset =
      reinterpret_cast<std::uintptr_t>(data) - reinterpret_cast<std::uintptr_t>(stack.data);
  if (offset < static_cast<std::uintptr_t>(stack.bytes)) {
    taken = static_cast<int64_t>(offset);
  } else {
    std::free(data);
  }
}

}  // namespace vmf
