// Which calls are ordinary enough to go without PyTorch's dispatcher, and how tensors cross over.
#include "bindings/direct.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <array>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace vmf::bindings {
namespace {

// What the interpreter is asked for, looked up once. Never released: it outlives the module.
struct Interpreter {
  PyObject *to_handle, *from_handles;      // functions: a tensor as a handle of the stable ABI
  PyObject *tensor_type, *parameter_type;  // a subclass may want to see the call itself
  PyObject* size_type;
  PyObject *is_neg, *requires_grad;      // names of a method and an attribute
  PyObject *forward_ad, *current_level;  // a module, and the name of its level: -1 where unused
  PyObject* autocast;                    // function: whether any is on
  std::array<PyObject*, 6> listeners;    // functions: true where one listens
};

Interpreter interpreter;

PyObject* find(const char* module, const char* name) {
  return py::object(py::module_::import(module).attr(name)).release().ptr();
}

Interpreter look_up() {
  return {
      find("torch._C._aoti", "unsafe_alloc_void_ptr_from_tensor"),
      find("torch._C._aoti", "alloc_tensors_by_stealing_from_void_ptrs"),
      find("torch", "Tensor"),
      find("torch.nn", "Parameter"),
      find("torch", "Size"),
      PyUnicode_InternFromString("is_neg"),
      PyUnicode_InternFromString("requires_grad"),
      find("torch.autograd", "forward_ad"),
      PyUnicode_InternFromString("_current_level"),
      find("torch._C", "_is_any_autocast_enabled"),
      {find("torch._C", "_len_torch_dispatch_stack"), find("torch._C", "_len_torch_function_stack"),
       find("torch._C", "_are_functorch_transforms_active"), find("torch._C", "_get_tracing_state"),
       find("torch._C", "_get_deterministic_algorithms"),
       find("torch._C._autograd", "_profiler_enabled")}};
}

bool truth(PyObject* result) {
  const auto owned = py::reinterpret_steal<py::object>(result);
  if (!owned) throw py::error_already_set();
  return owned.ptr() == Py_True || (owned.ptr() != Py_False && PyObject_IsTrue(owned.ptr()) != 0);
}

bool is_tensor(py::handle object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return type == interpreter.tensor_type || type == interpreter.parameter_type;
}

// A Python tensor that is exactly a Tensor or Parameter, dense or strided, in memory as it stands;
// null for any other object.
std::optional<Tensor> strided_tensor(py::handle object) {
  if (!is_tensor(object)) return {};
  // Negated only when it is read: its memory does not hold its values.
  if (truth(PyObject_CallMethodNoArgs(object.ptr(), interpreter.is_neg))) return {};
  const auto capsule =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(interpreter.to_handle, object.ptr()));
  if (!capsule) throw py::error_already_set();
  Tensor tensor(static_cast<AtenTensorHandle>(PyCapsule_GetPointer(capsule.ptr(), nullptr)));
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  return layout == aoti_torch_layout_strided() ? std::optional(std::move(tensor)) : std::nullopt;
}

// What `call_key` of vmf_kernels/_runs.py finds, as bytes.
class Key {
 public:
  bool add(py::handle object) {
    return is_tensor(object) ? add_tensor(object) : add_value(object, 0);
  }

  py::bytes bytes() const { return py::bytes(key_); }

 private:
  static constexpr int kDeepest = 3;  // of what lies within each other: a list may contain itself

  bool add_value(py::handle object, int depth) {
    PyObject* const o = object.ptr();
    if (object.is_none()) return tag('n');
    if (PyBool_Check(o)) return tag(o == Py_True ? 'y' : 'f');
    if (PyLong_CheckExact(o)) {
      const auto value = exact_int(object);
      return value && tag('i') && number(value->value);
    }
    if (PyFloat_CheckExact(o)) return tag('d') && number(PyFloat_AS_DOUBLE(o));
    if (PyUnicode_CheckExact(o)) return tag('s') && add_text(o);
    if (PyList_CheckExact(o)) return tag('l') && add_all(o, depth);
    if (PyTuple_CheckExact(o)) return tag('t') && add_all(o, depth);
    if (reinterpret_cast<PyObject*>(Py_TYPE(o)) == interpreter.size_type) {
      return tag('z') && add_all(o, depth);
    }
    return false;
  }

  bool add_tensor(py::handle object) {
    const auto tensor = strided_tensor(object);
    if (!tensor) return false;
    const auto sizes = tensor->sizes(), strides = tensor->strides();
    tag('x');
    number(static_cast<int32_t>(tensor->scalar_type()));
    number(static_cast<int32_t>(tensor->device().type()));
    number(static_cast<int32_t>(tensor->get_device_index()));
    number(static_cast<char>(reinterpret_cast<uintptr_t>(tensor->data_ptr()) % 16));
    number(static_cast<char>(needs_grad(object)));
    number(static_cast<int64_t>(sizes.size()));
    for (int64_t size : sizes) number(size);
    for (int64_t stride : strides) number(stride);
    return true;
  }

  bool add_all(PyObject* sequence, int depth) {
    if (depth == kDeepest) return false;
    PyObject** const items = PySequence_Fast_ITEMS(sequence);
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    number(static_cast<int64_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!add_value(items[i], depth + 1)) return false;
    }
    return true;
  }

  bool add_text(PyObject* text) {
    Py_ssize_t size;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(text, &size);
    if (utf8 == nullptr) {  // half a character
      PyErr_Clear();
      return false;
    }
    number(static_cast<int64_t>(size));
    key_.append(utf8, static_cast<size_t>(size));
    return true;
  }

  bool tag(char kind) {
    key_.push_back(kind);
    return true;
  }

  template <class Number>
  bool number(Number value) {
    key_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return true;
  }

  std::string key_;
};

}  // namespace

bool someone_listens() {
  for (PyObject* listener : interpreter.listeners) {
    if (truth(PyObject_CallNoArgs(listener))) return true;
  }
  const auto level = py::reinterpret_steal<py::object>(
      PyObject_GetAttr(interpreter.forward_ad, interpreter.current_level));
  return PyLong_AsLong(level.ptr()) >= 0;
}

bool casts() { return truth(PyObject_CallNoArgs(interpreter.autocast)); }

bool needs_grad(py::handle argument) {
  return aoti_torch_grad_mode_is_enabled() && is_tensor(argument) &&
         truth(PyObject_GetAttr(argument.ptr(), interpreter.requires_grad));
}

std::optional<Tensor> plain_tensor(py::handle object) {
  auto tensor = strided_tensor(object);
  return tensor && tensor->is_cpu() ? std::move(tensor) : std::nullopt;
}

py::handle to_python(const Tensor& tensor) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  // The function for a single tensor keeps a reference for ever (torch 2.11 to 2.14).
  const auto capsules = py::reinterpret_steal<py::object>(PyList_New(1));
  PyList_SET_ITEM(capsules.ptr(), 0, PyCapsule_New(handle, nullptr, nullptr));
  const auto tensors = py::reinterpret_steal<py::object>(
      PyObject_CallOneArg(interpreter.from_handles, capsules.ptr()));
  if (!tensors) throw py::error_already_set();
  return py::object(tensors[py::int_(0)]).release();
}

std::optional<Int> exact_int(py::handle object) {
  if (!PyLong_CheckExact(object.ptr())) return {};
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  return overflow != 0 ? std::nullopt : std::optional(Int{value});
}

std::optional<Triple> exact_triple(py::handle object) {
  if (const auto one = exact_int(object)) return Triple{one->value, one->value, one->value};
  if (!PyTuple_Check(object.ptr()) || PyTuple_GET_SIZE(object.ptr()) != 3) return {};
  const auto t = exact_int(PyTuple_GET_ITEM(object.ptr(), 0));
  const auto h = exact_int(PyTuple_GET_ITEM(object.ptr(), 1));
  const auto w = exact_int(PyTuple_GET_ITEM(object.ptr(), 2));
  return t && h && w ? std::optional(Triple{t->value, h->value, w->value}) : std::nullopt;
}

void bind_direct_calls(py::module_& m) {
  try {
    interpreter = look_up();
  } catch (py::error_already_set&) {
    return;
  }
  m.def("call_key", [](const py::tuple& args) -> py::object {
    Key key;
    try {
      for (const py::handle arg : args) {
        if (!key.add(arg)) return py::none();
      }
    } catch (const std::runtime_error&) {  // a tensor without memory, or without sizes
      return py::none();
    }
    return key.bytes();
  });
  for (const Direct* op = Direct::first; op != nullptr; op = op->next) op->bind(m);
}

}  // namespace vmf::bindings
