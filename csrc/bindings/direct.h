// Calls from Python without PyTorch's dispatcher, which costs a small layer more than its
// arithmetic: the functions that the dispatcher calls, bound with pybind11 as well.
//
// They are for ordinary calls: plain dense CPU tensors and arguments that fit, while nothing
// listens to the dispatcher. For any other they return None, and the caller takes the long road,
// which knows what to do or to say.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "bindings/tensor.h"

namespace vmf::bindings {

// Whether a mode, a tracer, a profiler or a transform would see a call through the dispatcher, or
// determinism asks it to fill fresh memory.
bool someone_listens();

// Whether autocast is on; whether autograd would record what is done with an argument.
bool casts();
bool needs_grad(pybind11::handle argument);

// A Python tensor that is exactly a Tensor or Parameter, dense or strided, in CPU memory as it
// stands; null for any other object.
std::optional<Tensor> plain_tensor(pybind11::handle object);
pybind11::handle to_python(const Tensor& tensor);

// Exact ints, as Python's checks want them: no bool, no float. One, or one or three for T, H and W.
struct Int {
  int64_t value;
};
struct Triple {
  int64_t t, h, w;
};
std::optional<Int> exact_int(pybind11::handle object);
std::optional<Triple> exact_triple(pybind11::handle object);

}  // namespace vmf::bindings

namespace pybind11::detail {

// A caster made of a function that reads a T or finds that the object is none.
template <class T, std::optional<T> (*read)(handle)>
struct ReadingCaster {
  template <typename>
  using cast_op_type = T;

  bool load(handle source, bool) { return (value = read(source)).has_value(); }
  operator T() { return *value; }

 private:
  std::optional<T> value;
};

template <>
struct type_caster<vmf::bindings::Tensor>
    : ReadingCaster<vmf::bindings::Tensor, vmf::bindings::plain_tensor> {
  static constexpr auto name = const_name("torch.Tensor");

  static handle cast(const vmf::bindings::Tensor& tensor, return_value_policy, handle) {
    return vmf::bindings::to_python(tensor);
  }
};

template <>
struct type_caster<vmf::bindings::Int>
    : ReadingCaster<vmf::bindings::Int, vmf::bindings::exact_int> {
  static constexpr auto name = const_name("int");
};

template <>
struct type_caster<vmf::bindings::Triple>
    : ReadingCaster<vmf::bindings::Triple, vmf::bindings::exact_triple> {
  static constexpr auto name = const_name("int | tuple[int, int, int]");
};

}  // namespace pybind11::detail

namespace vmf::bindings {

template <class>
using Object = pybind11::handle;  // of whatever argument

// `function` as Python calls it, or None: for questions about a call. What it refuses, the long
// road refuses in words.
template <class Result, class... Args>
auto question(Result (*function)(Args...)) {
  return [function](Object<Args>... objects) -> pybind11::object {
    std::tuple<pybind11::detail::make_caster<Args>...> casters;
    const auto load = [&](auto&... caster) { return (caster.load(objects, false) && ...); };
    if (!std::apply(load, casters)) return pybind11::none();
    const auto call = [&](auto&... caster) {
      std::tuple<Args...> arguments(pybind11::detail::cast_op<Args>(std::move(caster))...);
      const pybind11::gil_scoped_release release;
      const DirectCall direct_call;
      return std::apply(function, std::move(arguments));
    };
    try {
      return pybind11::cast(std::apply(call, casters));
    } catch (const std::runtime_error&) {
      return pybind11::none();
    }
  };
}

// The same for what the dispatcher would run: None too where it would be missed.
template <class Result, class... Args>
auto direct(Result (*function)(Args...)) {
  return [call = question(function)](Object<Args>... objects) -> pybind11::object {
    return someone_listens() ? pybind11::none() : call(objects...);
  };
}

// The same for a function of the public op's own arguments: None too where autocast changes them.
template <class Result, class... Args>
auto direct_uncast(Result (*function)(Args...)) {
  return [call = direct(function)](Object<Args>... objects) -> pybind11::object {
    return casts() ? pybind11::none() : call(objects...);
  };
}

// And None where a gradient is wanted.
template <class Result, class... Args>
auto direct_inference(Result (*function)(Args...)) {
  return [call = direct_uncast(function)](Object<Args>... objects) -> pybind11::object {
    return (needs_grad(objects) || ...) ? pybind11::none() : call(objects...);
  };
}

// The functions of each op: `const Direct name([](pybind11::module_& m) { m.def(...); });`
struct Direct {
  using Bind = void (*)(pybind11::module_&);

  explicit Direct(Bind bind) : bind(bind), next(first) { first = this; }

  Bind bind;
  Direct* next;
  static inline Direct* first = nullptr;
};

// Binds those of all ops, where this torch lets a tensor go to C++ without the dispatcher.
void bind_direct_calls(pybind11::module_& m);

}  // namespace vmf::bindings
