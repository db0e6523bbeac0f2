// DLPack's exchange functions and torch's dispatch state: their layout, and how they are found.
#include "tensor.h"

#include <dlfcn.h>

#include <initializer_list>
#include <stdexcept>

namespace fastconv::tensor {
namespace {

// DLPackExchangeAPI of DLPack 1.
struct Exchange {
  uint32_t major, minor;
  void* older;
  void *allocate, *from_object, *to_object;
  int (*view)(void* object, View* out);  // null where a framework has none
  void* current_stream;
};

Torch torch{};
const Exchange* exchange = nullptr;
PyObject *name_is_neg, *name_level, *name_contiguous, *names_of_format;

// Whether an answer, which is given back, is this constant. An error is not.
bool is(PyObject* answer, PyObject* constant) {
  if (!answer) PyErr_Clear();
  Py_XDECREF(answer);  // True and False live on
  return answer == constant;
}

}  // namespace

void connect(const Torch& given) {
  const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(given.exchange, "dlpack_exchange_api"));
  if (!found) PyErr_Clear();
  if (!found || found->major != 1 || !found->view)
    throw std::runtime_error("torch's tensors: expected the C functions of DLPack 1");
  for (PyObject* object : {given.exchange, given.plain_types[0], given.plain_types[1], given.forward_levels,
                           given.nothing_watches, given.is_grad_enabled, given.empty_like})
    Py_INCREF(object);
  name_is_neg = PyUnicode_InternFromString("is_neg");
  name_level = PyUnicode_InternFromString("_current_level");
  name_contiguous = PyUnicode_InternFromString("contiguous");
  names_of_format = Py_BuildValue("(s)", "memory_format");
  torch = given;
  exchange = found;
}

bool plain(PyObject* object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != torch.plain_types[0] && type != torch.plain_types[1]) return false;
  return is(PyObject_CallMethodNoArgs(object, name_is_neg), Py_False);
}

bool view(PyObject* object, View& out) {
  if (!exchange || !PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(torch.plain_types[0]))) return false;
  if (exchange->view(object, &out) != 0) {
    PyErr_Clear();
    return false;
  }
  return true;
}

PyObject* empty_like(PyObject* tensor) { return PyObject_CallOneArg(torch.empty_like, tensor); }

PyObject* contiguous(PyObject* tensor, PyObject* memory_format) {
  PyObject* arguments[] = {tensor, memory_format};
  return PyObject_VectorcallMethod(name_contiguous, arguments, 1, names_of_format);
}

const DispatchKeys* dispatch_keys() {
  // A thread-local variable: every thread has its own address of it.
  static thread_local const auto* keys = [] {
    void* c10 = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
    return static_cast<const DispatchKeys*>(c10 ? dlsym(c10, "_ZN3c104impl26raw_local_dispatch_key_setE") : nullptr);
  }();
  return keys;
}

bool grad_enabled() { return is(PyObject_CallNoArgs(torch.is_grad_enabled), Py_True); }

bool nothing_watches() {
  if (!exchange) return false;
  const DispatchKeys* keys = torch.dispatch_keys_tell ? dispatch_keys() : nullptr;
  if (keys && keys->included == 0 && keys->excluded == 0) {
    PyObject* level = PyDict_GetItemWithError(torch.forward_levels, name_level);
    if (level && PyLong_AsLong(level) < 0 && !PyErr_Occurred()) return true;
    PyErr_Clear();
  }
  return is(PyObject_CallNoArgs(torch.nothing_watches), Py_True);
}

}  // namespace fastconv::tensor
