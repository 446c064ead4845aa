// Two tests that must fail, to show that the sanitizers are at work.
#include <limits>

#include "check.h"

namespace vmf::test {
namespace {

void step_beyond(Random&) {
  const Tensor x(7, DType::f32);
  if (x[x.count()] == 0) std::puts("read beyond");
}

void overflow(Random& random) {
  int64_t n = std::numeric_limits<int64_t>::max() - random.below(1);
  std::printf("%lld\n", static_cast<long long>(++n));
}

const Test beyond("step_beyond", step_beyond), signed_overflow("overflow", overflow);

}  // namespace
}  // namespace vmf::test
