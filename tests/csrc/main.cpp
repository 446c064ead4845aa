// core_test OP ISA CASES: random cases of one op's kernels against loops in double precision.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "vmf/isa.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s OP ISA CASES\n", argv[0]);
    return 2;
  }
  vmf::set_isa(argv[2]);
  for (const auto* test = vmf::test::Test::first; test != nullptr; test = test->next) {
    if (test->name != argv[1]) continue;
    const long cases = std::atol(argv[3]);
    for (long seed = 0; seed < cases; ++seed) {
      vmf::test::Random random(static_cast<uint64_t>(seed));
      vmf::set_streaming_pays_from(seed % 2 == 0 ? 0 : INT64_MAX);
      test->run(random);
    }
    std::printf("%s %s: %ld cases\n", argv[1], argv[2], cases);
    return 0;
  }
  std::fprintf(stderr, "%s: there is no test of that name\n", argv[1]);
  return 2;
}
