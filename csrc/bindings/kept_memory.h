// Memory of large outputs, kept for the next one instead of going back to the system.
//
// The C library returns blocks of 32 MB and more to the system whenever they are freed, and the
// system maps each page anew, and clears it, when it is first written: 14 ms for 36 MB, five times
// what a 3x3x3 convolution takes to fill them. Smaller ones it hands out again, but not always to
// the next call: an aligned block asks for more than it leaves, so two blocks often take turns and
// the outputs of one call after the other need twice the cache. Kept blocks consist of pages of
// 2 MiB. All but the newest are marked as free to take (MADV_FREE): the system has them as soon as
// it needs any, until then writing to them costs nothing.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace vmf::bindings {

// An uninitialised CPU tensor in such a block. None for less than 8 MB, and where the system does
// not offer what it takes.
std::optional<torch::stable::Tensor> empty_in_kept_memory(torch::headeronly::ScalarType dtype,
                                                          const std::vector<int64_t>& size,
                                                          const std::vector<int64_t>& strides);

// Bytes that wait for the next output; the most that may, which is set and was before; and what was
// handed back to the system by a call.
int64_t kept_memory();
int64_t limit_kept_memory(int64_t bytes);
int64_t release_kept_memory();

}  // namespace vmf::bindings
