// `_C.Kernel`, written against Python's C interface: it runs between calls of torch, where a microsecond is a third of a call.
#include "kernel_call.h"

#include <structmember.h>  // T_PYSSIZET, until Python 3.12 has Py_T_PYSSIZET

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "tensor.h"

namespace fastconv {
namespace {

constexpr Py_ssize_t most = 2;  // inputs, outputs, and parameters

struct Kernel {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject* function;    // function(*parameters, *inputs, *outputs, threads); None: there is nothing to compute
  PyObject* parameters;  // a tuple
  PyObject* threads;
  PyObject* format;   // for Tensor.contiguous
  PyObject* outputs;  // a tuple of (shape, strides, dtype)
  PyObject* blank;    // blank(t, shape, strides, dtype): a tensor on t's device that needs no memory
  // Tensors like the outputs, made when first needed, just before the outputs: then none takes memory that a call would not.
  PyObject* blanks[most];
  PyObject* inputs;  // a tuple of their strides, which are tuples
};

bool has_strides(const tensor::View& view, PyObject* expected) {
  if (view.dimensions != PyTuple_GET_SIZE(expected)) return false;
  for (int32_t d = 0; d < view.dimensions; d++)
    if (view.strides[d] != PyLong_AsLongLong(PyTuple_GET_ITEM(expected, d))) return false;
  return true;
}

// Takes references along and gives them back at the end.
struct Owned {
  PyObject* objects[3 * most];
  Py_ssize_t count = 0;

  PyObject* operator()(PyObject* object) { return object ? objects[count++] = object : nullptr; }
  ~Owned() {
    while (count) Py_DECREF(objects[--count]);
  }
};

PyObject* blank_of(Kernel& kernel, Py_ssize_t output, PyObject* input) {
  PyObject*& kept = kernel.blanks[output];
  if (!kept) {
    PyObject* like = PyTuple_GET_ITEM(kernel.outputs, output);
    PyObject* arguments[] = {input, PyTuple_GET_ITEM(like, 0), PyTuple_GET_ITEM(like, 1), PyTuple_GET_ITEM(like, 2)};
    PyObject* made = PyObject_Vectorcall(kernel.blank, arguments, 4, nullptr);
    if (kept)
      Py_XDECREF(made);  // another thread was first
    else
      kept = made;
  }
  return kept;
}

// The outputs: one, or a tuple of several; None if the kernel answers False.
PyObject* call(PyObject* self, PyObject* const* arguments, size_t flags, PyObject* names) {
  auto& kernel = *reinterpret_cast<Kernel*>(self);
  const Py_ssize_t input_count = PyTuple_GET_SIZE(kernel.inputs);
  if (PyVectorcall_NARGS(flags) != input_count || names) {
    PyErr_Format(PyExc_TypeError, "kernel: expected %zd tensors", input_count);
    return nullptr;
  }
  Owned owned;
  PyObject* stack[3 * most + 1];
  Py_ssize_t depth = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kernel.parameters); i++) stack[depth++] = PyTuple_GET_ITEM(kernel.parameters, i);
  for (Py_ssize_t i = 0; i < input_count; i++) {
    PyObject* input = arguments[i];
    tensor::View view;
    if (!tensor::view(input, view)) {
      PyErr_Format(PyExc_TypeError, "kernel: expected a tensor with memory, got %s", Py_TYPE(input)->tp_name);
      return nullptr;
    }
    if (!has_strides(view, PyTuple_GET_ITEM(kernel.inputs, i)) && !(input = owned(tensor::contiguous(input, kernel.format))))
      return nullptr;
    stack[depth++] = input;
  }
  const Py_ssize_t output_count = PyTuple_GET_SIZE(kernel.outputs), first_output = depth;
  for (Py_ssize_t i = 0; i < output_count; i++) {
    PyObject* like = blank_of(kernel, i, arguments[0]);
    PyObject* output = like ? owned(tensor::empty_like(like)) : nullptr;
    if (!output) return nullptr;
    stack[depth++] = output;
  }
  if (kernel.function != Py_None) {
    stack[depth++] = kernel.threads;
    PyObject* answer = PyObject_Vectorcall(kernel.function, stack, size_t(depth), nullptr);
    if (!answer) return nullptr;
    Py_DECREF(answer);  // False lives on
    if (answer == Py_False) Py_RETURN_NONE;
  }
  PyObject* result = stack[first_output];
  if (output_count > 1) return PyTuple_Pack(2, result, stack[first_output + 1]);
  Py_INCREF(result);
  return result;
}

// Whether these are tuples of ints, of at least one and at most `most`.
bool are_strides(PyObject* inputs) {
  const Py_ssize_t count = PyTuple_GET_SIZE(inputs);
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject* strides = PyTuple_GET_ITEM(inputs, i);
    if (!PyTuple_Check(strides)) return false;
    for (Py_ssize_t d = 0; d < PyTuple_GET_SIZE(strides); d++)
      if (!PyLong_Check(PyTuple_GET_ITEM(strides, d))) return false;
  }
  return count > 0 && count <= most;
}

bool are_outputs(PyObject* outputs) {
  const Py_ssize_t count = PyTuple_GET_SIZE(outputs);
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject* output = PyTuple_GET_ITEM(outputs, i);
    if (!PyTuple_Check(output) || PyTuple_GET_SIZE(output) != 3) return false;
  }
  return count > 0 && count <= most;
}

PyObject* make(PyTypeObject* type, PyObject* positional, PyObject* named) {
  static const char* names[] = {"function", "parameters", "inputs", "outputs", "threads", "format", "blank", nullptr};
  PyObject *function, *parameters, *inputs, *outputs, *threads, *format, *blank;
  if (!PyArg_ParseTupleAndKeywords(positional, named, "OO!O!O!OOO", const_cast<char**>(names), &function, &PyTuple_Type,
                                   &parameters, &PyTuple_Type, &inputs, &PyTuple_Type, &outputs, &threads, &format, &blank))
    return nullptr;
  if (PyTuple_GET_SIZE(parameters) > most || !are_strides(inputs) || !are_outputs(outputs)) {
    PyErr_SetString(
        PyExc_ValueError,
        "kernel: expected at most two parameters, one or two tuples of strides, and one or two of (shape, strides, dtype)");
    return nullptr;
  }
  PyObject* self = type->tp_alloc(type, 0);
  if (!self) return nullptr;
  auto& kernel = *reinterpret_cast<Kernel*>(self);
  kernel.vectorcall = call;
  for (PyObject* object : {function, parameters, inputs, outputs, threads, format, blank}) Py_INCREF(object);
  kernel.function = function, kernel.parameters = parameters, kernel.inputs = inputs, kernel.outputs = outputs;
  kernel.threads = threads, kernel.format = format, kernel.blank = blank;
  return self;
}

void destroy(PyObject* self) {
  auto& kernel = *reinterpret_cast<Kernel*>(self);
  for (PyObject* object :
       {kernel.function, kernel.parameters, kernel.threads, kernel.format, kernel.inputs, kernel.outputs, kernel.blank})
    Py_XDECREF(object);
  for (PyObject* object : kernel.blanks) Py_XDECREF(object);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

}  // namespace

PyObject* kernel_call_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Kernel, vectorcall), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_members, members},
                                {0, nullptr}};
  static PyType_Spec spec = {"fastconv._C.Kernel", sizeof(Kernel), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE, slots};
  return PyType_FromSpec(&spec);
}

}  // namespace fastconv
