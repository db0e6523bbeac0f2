// Calls made ready: what Python has prepared for a call is found again by all about its arguments but the tensors' addresses.
#pragma once

#include <Python.h>

namespace fastconv::ready {

// What of Python is asked in every call. Python gives it once (fastconv/autograd.py).
struct Settings {
  PyObject* threads;    // torch.get_num_threads
  PyObject* current;    // the context variable with the target of calls on CPU tensors (fastconv/device.py)
  PyObject* target_of;  // the target of a call on a tensor, where it is not that
};
void connect(const Settings& settings);

// The functions that Python sees; arguments are those of an operator: its name, tensors and parameters, in any order.
extern PyMethodDef methods[];

}  // namespace fastconv::ready
