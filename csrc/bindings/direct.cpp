// Which calls are ordinary enough to go without PyTorch's dispatcher, and how tensors cross over.
#include "bindings/direct.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <array>

namespace py = pybind11;

namespace vmf::bindings {
namespace {

// What the interpreter is asked for, looked up once. Never released: it outlives the module.
struct Interpreter {
  PyObject *to_handle, *from_handles;      // functions: a tensor as a handle of the stable ABI
  PyObject *tensor_type, *parameter_type;  // a subclass may want to see the call itself
  PyObject *is_neg, *requires_grad;        // names of a method and an attribute
  PyObject *forward_ad, *current_level;    // a module, and the name of its level: -1 where unused
  PyObject* autocast;                      // function: whether any is on
  std::array<PyObject*, 6> listeners;      // functions: true where one listens
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
  if (!is_tensor(object)) return {};
  // Negated only when it is read: its memory does not hold its values.
  if (truth(PyObject_CallMethodNoArgs(object.ptr(), interpreter.is_neg))) return {};
  const auto capsule =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(interpreter.to_handle, object.ptr()));
  if (!capsule) throw py::error_already_set();
  Tensor tensor(static_cast<AtenTensorHandle>(PyCapsule_GetPointer(capsule.ptr(), nullptr)));
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  if (!tensor.is_cpu() || layout != aoti_torch_layout_strided()) return {};
  return tensor;
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
  for (const Direct* op = Direct::first; op != nullptr; op = op->next) op->bind(m);
}

}  // namespace vmf::bindings
