// The type `_C.Kernel`: a kernel made ready to be called with tensors. It brings inputs into the strides that the kernel
// expects, and allocates the outputs.
#pragma once

#include <Python.h>

namespace fastconv {

// A new reference to the type; null with an exception.
PyObject* kernel_call_type();

}  // namespace fastconv
