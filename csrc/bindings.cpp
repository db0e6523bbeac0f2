// The Python module fastconv._C: problem structs, plans, and functions that take tensors or addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "checks.h"
#include "cpu/dispatch.h"
#include "device.h"
#include "kernel_call.h"
#include "memory.h"
#include "plan.h"
#include "ready.h"
#include "simt/fault.h"
#include "tensor.h"

namespace py = pybind11;
using namespace fastconv;

namespace {

// Where an argument's elements lie. Python gives a tensor, an address, or None (nothing).
struct Memory {
  void* address = nullptr;
};

// An argument of one of this module's own types. By a plain reference pybind11 would look the type up by name in every call,
// which between calls of torch takes longer than to pool a small image.
template <class T>
struct Own {
  const T* object = nullptr;
  operator const T&() const { return *object; }
};

}  // namespace

namespace pybind11::detail {
template <>
struct type_caster<Memory> {
  PYBIND11_TYPE_CASTER(Memory, const_name("Memory"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (PyLong_Check(source.ptr())) {
      value.address = PyLong_AsVoidPtr(source.ptr());
      if (!PyErr_Occurred()) return true;
      PyErr_Clear();
      return false;
    }
    tensor::View view;
    if (!tensor::view(source.ptr(), view)) return false;
    value.address = view.data + view.byte_offset;
    return true;
  }
};
template <class T>
struct type_caster<Own<T>> {
  PYBIND11_TYPE_CASTER(Own<T>, make_caster<T>::name);

  bool load(handle source, bool) {
    static const PyObject* const type = py::type::of<T>().ptr();
    if (reinterpret_cast<PyObject*>(Py_TYPE(source.ptr())) != type) return false;
    value.object = static_cast<const T*>(reinterpret_cast<instance*>(source.ptr())->get_value_and_holder().value_ptr());
    return true;
  }
};
}  // namespace pybind11::detail

namespace {

using Address = uintptr_t;  // of a stream
using release_gil = py::call_guard<py::gil_scoped_release>;

void* at(Memory memory) { return memory.address; }
void* at(Address address) { return reinterpret_cast<void*>(address); }

// Memory that a kernel will fill with so many bytes, or null.
void* filled(void* address, int64_t bytes) {
  if (address) prefer_huge_pages(address, bytes);
  return address;
}
void* filled(Memory memory, int64_t elements, Dtype dtype) { return filled(at(memory), elements * size_of(dtype)); }
template <class Problem>
int64_t input_elements(const Problem& problem) {
  return problem.n * problem.c * problem.h * problem.w;
}
int64_t output_elements(const ConvProblem& problem) { return problem.n * problem.k * problem.p * problem.q; }
int64_t output_elements(const PoolProblem& problem) { return problem.n * problem.c * problem.p * problem.q; }
int64_t output_elements(const LrnProblem& problem) { return problem.n * problem.c * problem.spatial; }

// Lets other Python threads run, where the work takes longer than to hand over.
class Unlocked {
 public:
  template <class Problem>
  explicit Unlocked(const Problem& problem) {
    if (output_elements(problem) >= 4096) released_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> released_;
};

int usable(int threads) { return threads_usable() ? threads : 1; }

Primitive primitive_named(const std::string& name) {
  if (name == "forward") return Primitive::forward;
  if (name == "input_gradient") return Primitive::input_gradient;
  if (name == "weight_gradient") return Primitive::weight_gradient;
  checks::fail("primitive: expected forward, input_gradient or weight_gradient, got " + name);
}

void expect(const ConvPlan& plan, Primitive primitive) {
  if (plan.primitive != primitive) throw std::logic_error("this plan is for another primitive");
}

// `packed`: the weights as ConvPlan.pack leaves them, or 0.
void run(const ConvPlan& plan, cpu::ConvArgs& args, Memory workspace, Memory packed = {}) {
  filled(args.y, output_elements(plan.problem) * size_of(plan.dtype));
  filled(args.gx, input_elements(plan.problem) * size_of(plan.dtype));
  args.workspace = filled(at(workspace), plan.workspace_bytes);
  args.packed = at(packed);
  args.threads = usable(plan.threads);
  run_conv(plan, args);
}

// A plan for one of the devices. Its own class: a CPU plan's methods take no stream.
struct DevicePlan : ConvPlan {
  device::Backend backend;
};

void run(const DevicePlan& plan, cpu::ConvArgs& args, Memory workspace, Address stream) {
  args.workspace = at(workspace);
  args.threads = plan.threads;
  args.stream = at(stream);
  device::run_conv(plan.backend, plan, args);
}

// What both kinds of plan have. `Last` is the type of the last argument of forward and input_gradient, which `last` names and
// describes: packed weights or a stream; `Stream` is an address, or nothing for the CPU.
template <class Last, class... Stream, class Plan, class Named>
void bind_plan(py::class_<Plan>& type, const Named& last) {
  type.def_property_readonly("algorithm", [](const Plan& plan) { return plan.algorithm->name; })
      .def_property_readonly("workspace_bytes", [](const Plan& plan) { return plan.workspace_bytes; })
      .def(
          "forward",
          [](const Plan& plan, Memory x, Memory w, Memory b, Memory y, Memory workspace, Last packed_or_stream) {
            expect(plan, Primitive::forward);
            cpu::ConvArgs args{};
            args.x = at(x), args.w = at(w), args.b = at(b), args.y = at(y);
            run(plan, args, workspace, packed_or_stream);
          },
          release_gil(), py::arg("x"), py::arg("w"), py::arg("b"), py::arg("y"), py::arg("workspace"), last)
      .def(
          "input_gradient",
          [](const Plan& plan, Memory gy, Memory w, Memory b, Memory gx, Memory workspace, Last packed_or_stream) {
            expect(plan, Primitive::input_gradient);
            cpu::ConvArgs args{};
            args.gy = at(gy), args.w = at(w), args.b = at(b), args.gx = at(gx);
            run(plan, args, workspace, packed_or_stream);
          },
          release_gil(), py::arg("gy"), py::arg("w"), py::arg("b"), py::arg("gx"), py::arg("workspace"), last)
      .def(
          "weight_gradient",
          [](const Plan& plan, Memory gy, Memory x, Memory gw, Memory gb, Memory workspace, Stream... stream) {
            expect(plan, Primitive::weight_gradient);
            cpu::ConvArgs args{};
            args.gy = at(gy), args.x = at(x), args.gw = at(gw), args.gb = at(gb);
            run(plan, args, workspace, stream...);
          },
          release_gil());
}

void bind_problems(py::module_& m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::float32)
      .value("float64", Dtype::float64)
      .value("float16", Dtype::float16)
      .value("bfloat16", Dtype::bfloat16);
  py::enum_<Layout>(m, "Layout").value("channels_first", Layout::channels_first).value("channels_last", Layout::channels_last);

#define FIELD(name) .def_readwrite(#name, &Problem::name)
  {
    using Problem = ConvProblem;
    py::class_<Problem>(m, "ConvProblem")
        .def(py::init([] { return Problem{}; })) FIELD(n) FIELD(c) FIELD(h) FIELD(w) FIELD(k) FIELD(r) FIELD(s) FIELD(p)
            FIELD(q) FIELD(stride_h) FIELD(stride_w) FIELD(pad_top) FIELD(pad_bottom) FIELD(pad_left) FIELD(pad_right)
                FIELD(dilation_h) FIELD(dilation_w) FIELD(groups) FIELD(layout) FIELD(weight_layout) FIELD(dtype)
                    FIELD(allow_tf32) FIELD(relu) FIELD(allow_winograd);
  }
  {
    using Problem = PoolProblem;
    py::class_<Problem>(m, "PoolProblem")
        .def(py::init([] { return Problem{}; })) FIELD(n) FIELD(c) FIELD(h) FIELD(w) FIELD(r) FIELD(s) FIELD(p) FIELD(q)
            FIELD(stride_h) FIELD(stride_w) FIELD(pad_top) FIELD(pad_left) FIELD(pad_bottom) FIELD(pad_right) FIELD(dilation_h)
                FIELD(dilation_w) FIELD(count_include_pad) FIELD(divisor) FIELD(adaptive) FIELD(layout) FIELD(dtype)
        .def("validate", [](const Problem& problem) { checks::validate(problem); })
        .def_property_readonly(
            "fits_window_index", [](const Problem& problem) { return checks::fits_window_index(problem); },
            "Whether MaxIndex.window can be used: a window has at most 255 positions.");
  }
  {
    using Problem = LrnProblem;
    py::class_<Problem>(m, "LrnProblem")
        .def(py::init([] { return Problem{}; })) FIELD(n) FIELD(c) FIELD(spatial) FIELD(size) FIELD(alpha) FIELD(beta) FIELD(k)
            FIELD(layout) FIELD(dtype)
        .def("validate", [](const Problem& problem) { checks::validate(problem); });
  }
#undef FIELD
}

void bind_conv(py::module_& m) {
  m.def(
      "conv_algorithms",
      [](const ConvProblem& problem, const std::string& primitive) {
        return conv_algorithms(problem, primitive_named(primitive));
      },
      py::arg("problem"), py::arg("primitive"));
  py::class_<ConvPlan> plan(m, "ConvPlan");
  plan.def(py::init([](const ConvProblem& problem, const std::string& primitive, int threads, const std::string& algorithm) {
             return plan_conv(problem, primitive_named(primitive), threads, algorithm);
           }),
           py::arg("problem"), py::arg("primitive"), py::arg("threads"), py::arg("algorithm") = "")
      .def_readonly("threads", &ConvPlan::threads)
      .def_property_readonly("packed_bytes", packed_bytes)
      .def(
          "pack",
          [](const ConvPlan& plan, Memory w, Memory packed, Memory workspace) {
            if (!packed_bytes(plan)) throw std::logic_error("this plan's algorithm does not pack weights");
            cpu::ConvArgs args{};
            args.w = at(w), args.packed = at(packed), args.workspace = at(workspace);
            args.threads = usable(plan.threads);
            pack_conv(plan, args);
          },
          release_gil());
  bind_plan<Memory>(plan, py::arg("packed") = py::none());
}

void expect_fitting(const PoolProblem& problem, cpu::MaxIndex kind) {
  if (kind == cpu::MaxIndex::window && !checks::fits_window_index(problem))
    checks::fail("index kind: MaxIndex.window expects windows of at most 255 positions");
}

void bind_pool(py::module_& m) {
  using cpu::MaxIndex;
  py::enum_<MaxIndex>(m, "MaxIndex").value("window", MaxIndex::window).value("plane", MaxIndex::plane);
  m.def("max_pool_forward", [](Own<PoolProblem> given, Memory x, Memory y, int threads) {
    const PoolProblem& problem = given;
    const Unlocked unlocked(problem);
    cpu::kernels().pool.max_forward(problem, at(x), filled(y, output_elements(problem), problem.dtype), nullptr, MaxIndex::none,
                                    usable(threads));
  });
  m.def("max_pool_forward_with_index",
        [](Own<PoolProblem> given, MaxIndex kind, Memory x, Memory y, Memory index, int threads) {
          const PoolProblem& problem = given;
          const Unlocked unlocked(problem);
          expect_fitting(problem, kind);
          cpu::kernels().pool.max_forward(problem, at(x), filled(y, output_elements(problem), problem.dtype), at(index), kind,
                                          usable(threads));
        });
  m.def("max_pool_backward", [](Own<PoolProblem> given, MaxIndex kind, Memory gy, Memory index, Memory gx, int threads) {
    const PoolProblem& problem = given;
    const Unlocked unlocked(problem);
    expect_fitting(problem, kind);
    return cpu::kernels().pool.max_backward(problem, at(gy), at(index), kind,
                                            filled(gx, input_elements(problem), problem.dtype), usable(threads));
  });
  m.def("max_pool_gather", [](Own<PoolProblem> given, MaxIndex kind, Memory v, Memory index, Memory y, int threads) {
    const PoolProblem& problem = given;
    const Unlocked unlocked(problem);
    expect_fitting(problem, kind);
    return cpu::kernels().pool.max_gather(problem, at(v), at(index), kind, filled(y, output_elements(problem), problem.dtype),
                                          usable(threads));
  });
  m.def("average_pool_forward", [](Own<PoolProblem> given, Memory x, Memory y, int threads) {
    const PoolProblem& problem = given;
    const Unlocked unlocked(problem);
    cpu::kernels().pool.average_forward(problem, at(x), filled(y, output_elements(problem), problem.dtype), usable(threads));
  });
  m.def("average_pool_backward", [](Own<PoolProblem> given, Memory gy, Memory gx, int threads) {
    const PoolProblem& problem = given;
    const Unlocked unlocked(problem);
    cpu::kernels().pool.average_backward(problem, at(gy), filled(gx, input_elements(problem), problem.dtype), usable(threads));
  });
}

void bind_lrn(py::module_& m) {
  m.def("lrn_forward", [](Own<LrnProblem> given, Memory x, Memory y, int threads) {
    const LrnProblem& problem = given;
    const Unlocked unlocked(problem);
    cpu::kernels().lrn.forward(problem, at(x), filled(y, output_elements(problem), problem.dtype), usable(threads));
  });
  m.def("lrn_backward", [](Own<LrnProblem> given, Memory gy, Memory x, Memory gx, int threads) {
    const LrnProblem& problem = given;
    const Unlocked unlocked(problem);
    cpu::kernels().lrn.backward(problem, at(x), at(gy), filled(gx, output_elements(problem), problem.dtype), usable(threads));
  });
}

// A submodule with the functions of the CPU by the same names; they take a stream instead of a thread count.
void bind_device(py::module_ m, device::Backend backend) {
  m.def(
      "conv_algorithms",
      [backend](const ConvProblem& problem, const std::string& primitive) {
        const cuda::Kernels& table = device::kernels(backend);
        return conv_algorithms(problem, primitive_named(primitive), table.conv, table.conv_count);
      },
      py::arg("problem"), py::arg("primitive"));
  m.def(
      "ConvPlan",
      [backend](const ConvProblem& problem, const std::string& primitive, int multiprocessors, const std::string& algorithm) {
        const cuda::Kernels& table = device::kernels(backend);
        return DevicePlan{
            plan_conv(problem, primitive_named(primitive), multiprocessors, algorithm, table.conv, table.conv_count), backend};
      },
      py::arg("problem"), py::arg("primitive"), py::arg("multiprocessors"), py::arg("algorithm") = "");
  m.def(
      "max_pool_forward",
      [backend](const PoolProblem& p, Memory x, Memory y, Address stream) {
        device::max_pool_forward(backend, p, at(x), at(y), nullptr, cpu::MaxIndex::none, at(stream));
      },
      release_gil());
  m.def(
      "max_pool_forward_with_index",
      [backend](const PoolProblem& p, cpu::MaxIndex kind, Memory x, Memory y, Memory index, Address stream) {
        expect_fitting(p, kind);
        device::max_pool_forward(backend, p, at(x), at(y), at(index), kind, at(stream));
      },
      release_gil());
  m.def(
      "max_pool_backward",
      [backend](const PoolProblem& p, cpu::MaxIndex kind, Memory gy, Memory index, Memory gx, Address stream) {
        expect_fitting(p, kind);
        device::max_pool_backward(backend, p, at(gy), at(index), kind, at(gx), at(stream));
        return true;
      },
      release_gil());
  m.def(
      "max_pool_gather",
      [backend](const PoolProblem& p, cpu::MaxIndex kind, Memory v, Memory index, Memory y, Address stream) {
        expect_fitting(p, kind);
        device::max_pool_gather(backend, p, at(v), at(index), kind, at(y), at(stream));
        return true;
      },
      release_gil());
  m.def(
      "average_pool_forward",
      [backend](const PoolProblem& p, Memory x, Memory y, Address stream) {
        device::average_pool_forward(backend, p, at(x), at(y), at(stream));
      },
      release_gil());
  m.def(
      "average_pool_backward",
      [backend](const PoolProblem& p, Memory gy, Memory gx, Address stream) {
        device::average_pool_backward(backend, p, at(gy), at(gx), at(stream));
      },
      release_gil());
  m.def(
      "lrn_forward",
      [backend](const LrnProblem& p, Memory x, Memory y, Address stream) {
        device::lrn_forward(backend, p, at(x), at(y), at(stream));
      },
      release_gil());
  m.def(
      "lrn_backward",
      [backend](const LrnProblem& p, Memory gy, Memory x, Memory gx, Address stream) {
        device::lrn_backward(backend, p, at(x), at(gy), at(gx), at(stream));
      },
      release_gil());
}

void bind_simulation(py::module_ m) {
  bind_device(m, device::Backend::simulation);
  m.def(
      "stream",
      [](const std::string& order, int64_t seed, const std::string& architecture) {
        return reinterpret_cast<Address>(device::simulated_stream(order, seed, architecture));
      },
      "What to give as a call's stream, so that it is run in this order of threads and blocks, with these limits of launches.",
      py::arg("order"), py::arg("seed"), py::arg("architecture"));
}

void bind_calls(py::module_& m) {
  m.def(
      "connect",
      [](py::object exchange, py::type tensor, py::type parameter, py::dict forward_levels, py::object nothing_watches,
         py::object is_grad_enabled, py::object empty_like, bool dispatch_keys_tell, py::object threads,
         py::object current_target, py::object target_of) {
        tensor::connect({exchange.ptr(),
                         {tensor.ptr(), parameter.ptr()},
                         forward_levels.ptr(),
                         nothing_watches.ptr(),
                         is_grad_enabled.ptr(),
                         empty_like.ptr(),
                         dispatch_keys_tell});
        ready::connect({threads.ptr(), current_target.ptr(), target_of.ptr()});
      },
      "Gives the module what it uses of torch (csrc/tensor.h) and of Python (csrc/ready.h).", py::arg("exchange"),
      py::arg("tensor"), py::arg("parameter"), py::arg("forward_levels"), py::arg("nothing_watches"),
      py::arg("is_grad_enabled"), py::arg("empty_like"), py::arg("dispatch_keys_tell"), py::arg("threads"),
      py::arg("current_target"), py::arg("target_of"));
  m.def(
      "dispatch_keys",
      []() -> std::optional<std::pair<uint64_t, uint64_t>> {
        const tensor::DispatchKeys* keys = tensor::dispatch_keys();
        if (!keys) return std::nullopt;
        return std::pair(keys->included, keys->excluded);
      },
      "This thread's dispatch keys beyond the default, included and excluded; None if this torch does not export them.");
  if (PyModule_AddFunctions(m.ptr(), ready::methods) < 0) throw py::error_already_set();
  PyObject* kernel = kernel_call_type();
  if (!kernel) throw py::error_already_set();
  m.attr("Kernel") = py::reinterpret_steal<py::object>(kernel);
}

#ifdef FASTCONV_CUDA
void bind_cuda(py::module_ m) {
  bind_device(m, device::Backend::cuda);
  m.attr("architectures") = py::str(FASTCONV_CUDA).attr("split")(",");
  m.attr("nvcc") = FASTCONV_NVCC;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastconv's kernels. The Python package checks arguments and allocates; this module takes memory.";
  m.attr("interface") = FASTCONV_INTERFACE;
  m.def("isa", [] { return std::string(cpu::kernels().isa); }, "The instruction set in use.");
  m.def("compiled_isas", cpu::compiled_isas, "Instruction sets this module was compiled for, best first.");
  m.def("available_isas", cpu::available_isas, "Those of them that this machine has.");
  m.def("useful_threads", useful_threads, "How many threads are worth waking for so many operations.", py::arg("operations"),
        py::arg("threads"));
  m.def(
      "multiply_add_ceiling",
      [](int64_t steps, int threads) { return cpu::kernels().multiply_add_ceiling(steps, usable(threads)); },
      "Runs nothing but float32 multiply-adds; returns how many operations that were.", py::arg("steps"), py::arg("threads"),
      release_gil());
  bind_problems(m);
  bind_conv(m);
  bind_pool(m);
  bind_lrn(m);
  bind_calls(m);
  py::register_exception<simt::KernelFault>(m, "KernelFault", PyExc_RuntimeError);
  py::class_<DevicePlan> device_plan(m, "DevicePlan");
  bind_plan<Address, Address>(device_plan, py::arg("stream"));
  bind_simulation(m.def_submodule("simulation", "The CUDA kernels, run and checked on the CPU."));
#ifdef FASTCONV_CUDA
  bind_cuda(m.def_submodule("cuda", "The CUDA kernels."));
#else
  m.attr("without_cuda") = FASTCONV_WITHOUT_CUDA;  // why not
#endif
  cpu::kernels();  // an unusable FASTCONV_ISA is an import error, not a later crash
}
