// The host module vmf_kernels._C: what was built, which instruction set runs, and the direct calls
// of all ops. Importing it also registers the CPU kernels of the other files with PyTorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/direct.h"
#include "bindings/kept_memory.h"
#include "vmf/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of vmf_kernels: build facts, choice of the instruction set, calls.";
  m.attr("compiler") = __VERSION__;
  m.def("built_isas", &vmf::built_isas, "Instruction sets in this binary, slowest first.");
  m.def("supported_isas", &vmf::supported_isas, "Those of built_isas() that this CPU has.");
  m.def("current_isa", &vmf::current_isa, "The one in use.");
  m.def("set_isa", &vmf::set_isa, py::arg("name"),
        "Uses another one from now on; ValueError unless it is supported.");
  m.def("set_streaming_pays_from", &vmf::set_streaming_pays_from, py::arg("bytes"),
        "Sets from how many bytes read and written on stores go around the caches; what it was.");
  m.def("kept_memory", &vmf::bindings::kept_memory,
        "Bytes of freed outputs that wait for the next one.");
  m.def("limit_kept_memory", &vmf::bindings::limit_kept_memory, py::arg("bytes"),
        "Sets how many may, by default an eighth of the machine's memory; returns how many might.");
  m.def("release_kept_memory", &vmf::bindings::release_kept_memory,
        "Hands them back to the system; how many they were.");
  vmf::bindings::bind_direct_calls(m);
}
