// The table of calls made ready, and how arguments become its keys.
#include "ready.h"

#include <pybind11/pybind11.h>

#include <cstring>
#include <initializer_list>
#include <unordered_map>
#include <utility>

#include "tensor.h"

namespace py = pybind11;

namespace fastconv::ready {
namespace {

constexpr size_t capacity = 4096;  // calls; then the table starts afresh, which loses only the time to prepare calls again

Settings settings{};
PyObject* name_simulation;

// Arguments as numbers, each led by its kind: True, 1 and 1.0 are equal in Python, but not equally valid. Written by value, so
// that a list may change after the call.
class Key {
 public:
  static constexpr size_t most = 72;  // beyond any valid call: a convolution has 30 numbers of tensors and 30 of parameters

  bool add(uint64_t word) {
    if (count == most) return false;
    words[count++] = word;
    return true;
  }
  bool add(const void* pointer) { return add(reinterpret_cast<uint64_t>(pointer)); }
  bool add_argument(PyObject* value);

  bool operator==(const Key& other) const {
    return count == other.count && std::memcmp(words, other.words, count * sizeof(uint64_t)) == 0;
  }
  size_t hash() const {
    uint64_t h = count;
    for (size_t i = 0; i < count; i++) h = (h ^ words[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    return h;
  }
  PyObject* first_tensor = nullptr;
  int32_t device = tensor::on_cpu;

 private:
  enum Kind : uint64_t { none = 1, boolean, integer, real, text, tuple, list, image };

  bool add_text(PyObject* value);
  bool add_sequence(Kind kind, PyObject* value);
  bool add_tensor(PyObject* value);

  size_t count = 0;
  uint64_t words[most];
};

// False: not an argument to be compared by value; or a bad one, which the checks will name.
bool Key::add_argument(PyObject* value) {
  if (value == Py_None) return add(none);
  if (PyBool_Check(value)) return add(boolean) && add(uint64_t(value == Py_True));
  if (PyLong_CheckExact(value)) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow && add(integer) && add(uint64_t(number));
  }
  if (PyFloat_CheckExact(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return add(real) && add(bits);
  }
  if (PyUnicode_CheckExact(value)) return add_text(value);
  if (PyTuple_Check(value)) return add_sequence(tuple, value);  // torch.Size too
  if (PyList_CheckExact(value)) return add_sequence(list, value);
  return add_tensor(value);
}

bool Key::add_text(PyObject* value) {
  Py_ssize_t length = 0;
  const char* characters = PyUnicode_AsUTF8AndSize(value, &length);
  if (!characters) {
    PyErr_Clear();
    return false;
  }
  if (!add(text) || !add(uint64_t(length))) return false;
  for (Py_ssize_t i = 0; i < length; i += Py_ssize_t(sizeof(uint64_t))) {
    uint64_t word = 0;
    std::memcpy(&word, characters + i, size_t(length - i) < sizeof word ? size_t(length - i) : sizeof word);
    if (!add(word)) return false;
  }
  return true;
}

bool Key::add_sequence(Kind kind, PyObject* value) {
  const Py_ssize_t length = PySequence_Fast_GET_SIZE(value);
  if (!add(kind) || !add(uint64_t(length))) return false;
  for (Py_ssize_t i = 0; i < length; i++)
    if (!add_argument(PySequence_Fast_GET_ITEM(value, i))) return false;
  return true;
}

bool Key::add_tensor(PyObject* value) {
  tensor::View view;
  if (!tensor::plain(value) || !tensor::view(value, view)) return false;
  if (!first_tensor) {
    first_tensor = value;
    device = view.device;
  }
  const uint64_t type = uint64_t(view.type_code) << 32 | uint64_t(view.type_bits) << 16 | view.type_lanes;
  if (!add(image) || !add(type) || !add(uint64_t(view.device) << 32 | uint32_t(view.device_index))) return false;
  if (!add(uint64_t(view.dimensions))) return false;
  for (int32_t d = 0; d < view.dimensions; d++)
    if (!add(uint64_t(view.shape[d])) || !add(uint64_t(view.strides[d]))) return false;
  return true;
}

py::object owned(PyObject* reference) { return py::reinterpret_steal<py::object>(reference); }

// The present target: one object for equal settings.
py::object target_of(const Key& key) {
  PyObject* target = nullptr;
  if (PyContextVar_Get(settings.current, nullptr, &target) < 0 || !target) return {};
  py::object found = owned(target);
  const py::object simulation = owned(PyObject_GetAttr(target, name_simulation));
  if (simulation.is_none() && key.device == tensor::on_cpu) return found;
  return owned(PyObject_CallOneArg(settings.target_of, key.first_tensor));
}

// Makes the key of a call and returns its target; null if it has none: something watches, or an argument is of a kind without.
py::object make_key(Key& key, PyObject* const* arguments, Py_ssize_t count) {
  if (!tensor::nothing_watches()) return {};
  for (Py_ssize_t i = 0; i < count; i++)
    if (!key.add_argument(arguments[i])) return {};
  const py::object threads = owned(PyObject_CallNoArgs(settings.threads));
  if (!key.first_tensor || !threads || !key.add_argument(threads.ptr())) return {};
  py::object target = target_of(key);
  if (!key.add(target.ptr())) return {};
  return target;
}

struct Hash {
  size_t operator()(const Key& key) const { return key.hash(); }
};
struct Kept {
  py::object ready;
  py::object target;  // its address is part of the key
};
using Table = std::unordered_map<Key, Kept, Hash>;

// Never destroyed: Python is gone before static objects are.
Table& table() {
  static Table& only = *new Table;
  return only;
}

void forget_all() {
  Table old;
  std::swap(old, table());  // first: letting an object go may run any code
}

PyObject* find(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Key key;
  PyObject* found = Py_None;
  if (make_key(key, arguments, count)) {
    const auto entry = table().find(key);
    if (entry != table().end()) found = entry->second.ready.ptr();
  }
  PyErr_Clear();
  Py_INCREF(found);
  return found;
}

PyObject* keep(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Key key;
  py::object target = make_key(key, arguments + 1, count - 1);
  PyErr_Clear();
  if (target) {
    if (table().size() >= capacity) forget_all();
    auto ready = py::reinterpret_borrow<py::object>(arguments[0]);
    table().emplace(key, Kept{std::move(ready), std::move(target)});  // where another thread was first, that stays
  }
  Py_RETURN_NONE;
}

PyObject* forget(PyObject*, PyObject*) {
  forget_all();
  Py_RETURN_NONE;
}

PyObject* kept(PyObject*, PyObject*) { return PyLong_FromSize_t(table().size()); }

PyObject* first_order(PyObject*, PyObject* gradient) {
  return PyBool_FromLong(!tensor::grad_enabled() && tensor::plain(gradient) && tensor::nothing_watches());
}

template <class Function>
PyCFunction fast(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

void connect(const Settings& given) {
  for (PyObject* object : {given.threads, given.current, given.target_of}) Py_INCREF(object);
  name_simulation = PyUnicode_InternFromString("simulation");
  settings = given;
}

PyMethodDef methods[] = {
    {"find", fast(find), METH_FASTCALL,
     "What was kept for a call with such arguments; None if nothing was, or something watches."},
    {"keep", fast(keep), METH_FASTCALL, "keep(ready, *arguments): for `find`, where the arguments are such as can be found."},
    {"forget", forget, METH_NOARGS, "Forgets all that was kept."},
    {"kept", kept, METH_NOARGS, "How many calls are kept."},
    {"first_order", first_order, METH_O,
     "Whether a backward pass may just compute: no graph of this plain gradient is wanted, and nothing watches."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastconv::ready
