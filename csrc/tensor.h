// Torch's tensors and its state, seen from C++ without torch's headers: by DLPack's C functions, which torch hands out.
#pragma once

#include <Python.h>

#include <cstdint>

namespace fastconv::tensor {

// DLTensor of DLPack 1 (github.com/dmlc/dlpack): a layout of memory that stays.
struct View {
  char* data;
  int32_t device, device_index;
  int32_t dimensions;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
};
constexpr int32_t on_cpu = 1;

// What of torch is used here. Python gives it once (fastconv/autograd.py).
struct Torch {
  PyObject* exchange;        // torch.Tensor.__dlpack_c_exchange_api__
  PyObject* plain_types[2];  // torch.Tensor and torch.nn.Parameter
  PyObject* forward_levels;  // the dictionary of torch.autograd.forward_ad, whose `_current_level` is -1 when it is not at work
  PyObject* nothing_watches;  // the same question as `nothing_watches` below, answered with all care
  PyObject* is_grad_enabled;  // torch.is_grad_enabled
  PyObject* empty_like;       // torch.empty_like
  bool dispatch_keys_tell;    // whether `dispatch_keys` below was seen to change when it should
};
void connect(const Torch& torch);

// A tensor of torch's own type, not a subclass of it, whose memory is as it seems (no pending negation).
bool plain(PyObject* object);

// Whether this object is a tensor that has memory; if so, what it is. No exception is left behind.
bool view(PyObject* object, View& out);

// New references, or null with an exception.
PyObject* empty_like(PyObject* tensor);
PyObject* contiguous(PyObject* tensor, PyObject* memory_format);

// Whether operations are just executed: by no tracer, dispatch mode, transform of torch.func or forward-mode differentiation.
// All but the last take part in torch's dispatch, so that the thread's state of dispatch tells; where that differs from its
// default, or cannot be found, Python looks.
bool nothing_watches();

bool grad_enabled();

// The thread's dispatch keys beyond the default, included and excluded; null if this torch does not export them.
struct DispatchKeys {
  uint64_t included, excluded;
};
const DispatchKeys* dispatch_keys();

}  // namespace fastconv::tensor
