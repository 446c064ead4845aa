#include "workspace.h"

#include <cstdlib>
#include <new>

namespace vmf {
namespace {

constexpr int64_t kLine = 64;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block block;

}  // namespace

void* workspace(int64_t bytes) {
  if (bytes > block.bytes) {
    std::free(block.data);
    block.bytes = (bytes + kLine - 1) / kLine * kLine;
    block.data = std::aligned_alloc(kLine, block.bytes);
    if (block.data == nullptr) {
      block.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return block.data;
}

}  // namespace vmf
