// CUDA for a CPU, as far as the kernels of csrc/cuda need it, so that sanitizers can watch them:
// the threads of a block are fibers of one thread, which take turns at __syncthreads.
#pragma once

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct Dim3 {
  unsigned x = 0;
};
inline Dim3 threadIdx, blockIdx;

namespace vmf::cuda {

using std::max;
using std::min;

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float f16_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof x);
  return static_cast<float>(x);
}
inline uint16_t float_to_f16(float value) {
  const auto x = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline uint16_t float_to_bf16(float x) {  // of a number, to the nearest, ties to even
  const uint32_t bits = float_to_bits(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint32_t floats_to_bf16(float first, float second) {
  return float_to_bf16(first) | static_cast<uint32_t>(float_to_bf16(second)) << 16;
}
inline uint32_t floats_to_f16(float first, float second) {
  return float_to_f16(first) | static_cast<uint32_t>(float_to_f16(second)) << 16;
}

// Tells AddressSanitizer, if it is there, which stack is in use.
inline void leave_stack([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom,
                        [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, bottom, size);
#endif
}
inline void enter_stack([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom = nullptr,
                        [[maybe_unused]] size_t* size = nullptr) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
}

// The fibers of one block.
class Fibers {
 public:
  explicit Fibers(std::function<void()> run) : run_(std::move(run)) {
    for (auto& fiber : fibers_) fiber.stack = std::make_unique<char[]>(kStack);
  }

  void run_block(unsigned block) {
    blockIdx.x = block;
    current() = this;
    for (auto& fiber : fibers_) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Fibers::main, 0);
      fiber.done = false;
    }
    shared_.reset();
    // One after the other runs to its next barrier; from barrier to barrier the order turns round.
    for (int done = 0, turn = 0; done < kThreads; ++turn) {
      for (int i = 0; i < kThreads; ++i) {
        const int thread = turn % 2 == 0 ? i : kThreads - 1 - i;
        threadIdx.x = static_cast<unsigned>(thread);
        running_ = &fibers_[thread];
        void* fake = nullptr;
        leave_stack(&fake, running_->stack.get(), kStack);
        swapcontext(&scheduler_, &running_->context);
        enter_stack(fake);
        done += running_->done;
      }
      if (done % kThreads != 0) std::abort();  // some left while others wait at a barrier
    }
  }

  static void yield() { current()->leave(false); }

  // Memory of the block's own, all ones (NaN in every floating type) at first.
  static void* shared(size_t bytes) {
    auto& memory = current()->shared_;
    if (!memory) {
      memory.reset(static_cast<char*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16)));
      std::memset(memory.get(), 0xff, bytes);
    }
    return memory.get();
  }

 private:
  static constexpr size_t kStack = 1 << 16;
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = true;
  };

  static Fibers*& current() {
    static Fibers* fibers = nullptr;
    return fibers;
  }

  static void main() {
    Fibers& self = *current();
    enter_stack(nullptr, &self.bottom_, &self.size_);
    self.run_();
    self.leave(true);
  }

  void leave(bool done) {
    running_->done = done;
    void* fake = nullptr;
    leave_stack(done ? nullptr : &fake, bottom_, size_);
    swapcontext(&running_->context, &scheduler_);
    enter_stack(fake, &bottom_, &size_);
  }

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  std::function<void()> run_;
  std::unique_ptr<char, Free> shared_;
  ucontext_t scheduler_;
  Fiber fibers_[kThreads];
  Fiber* running_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

template <class T>
T& shared_memory() {
  return *static_cast<T*>(Fibers::shared(sizeof(T)));
}

inline int runtime_version() { return 0; }

template <class Arguments>
const char* launch(void (*kernel)(Arguments), int64_t blocks, const Arguments& arguments, void*) {
  Fibers fibers([&] { kernel(arguments); });
  for (int64_t block = 0; block < blocks; ++block) fibers.run_block(static_cast<unsigned>(block));
  return nullptr;
}

}  // namespace vmf::cuda

inline void __syncthreads() { vmf::cuda::Fibers::yield(); }
