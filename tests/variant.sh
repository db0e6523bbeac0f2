#!/usr/bin/env bash
# Builds a variant of the core beside the installed one, and runs tests on it.
#
#   tests/variant.sh sanitize    under AddressSanitizer and UndefinedBehaviorSanitizer
#   tests/variant.sh avx512      the AVX-512 kernels, made of AVX2 instructions so that any x86-64-v3 machine executes them
#
# PYTHON is the interpreter of an environment with the `dev` extra; what follows the name goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?sanitize or avx512}
shift
python=${PYTHON:-.venv/bin/python}
build=build/$name

case $name in
  sanitize) options=(-DFASTCONV_CUDA=off -DFASTCONV_SANITIZE=ON) ;;
  avx512) options=(-DFASTCONV_CUDA=off -DFASTCONV_EMULATE_AVX512=ON) ;;
  *) echo "unknown variant $name: expected sanitize or avx512" >&2; exit 2 ;;
esac

rm -rf "$build/package"
mkdir -p "$build/package"
cp -r fastconv "$build/package/"
rm -f "$build"/package/fastconv/_C.*.so
"$python" -m cmake -G Ninja -S . -B "$build" -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/$build/package/fastconv" \
  -DCMAKE_MAKE_PROGRAM="$("$python" -c 'import ninja; print(ninja.BIN_DIR)')/ninja" "${options[@]}" >"$build/configure.log"
"$python" -m cmake --build "$build"

export FASTCONV_BACKENDS=cpu
# From another folder than the root, so that the sources there are not imported instead.
export PYTHONPATH="$PWD/$build/package"
cd tests
case $python in */*) python=$(cd .. && realpath -s "$python") ;; esac
if [ "$name" = avx512 ]; then
  export FASTCONV_ISA=avx512
  # The test of symbols looks at the objects, which an installed package no longer has.
  exec "$python" -m pytest -q test_exact.py test_determinism.py test_kernels_*.py test_memory.py \
    test_tolerance.py test_core.py::test_no_code_of_an_instruction_set_outside_its_namespace "$@"
fi

# Every instruction set of this machine in turn. libstdc++ is preloaded too: ASan needs its __cxa_throw.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
# A sanitizer that misses a write beyond a tensor would prove nothing.
overrun='import native, cases, torch
case = cases.CONV[0]
y, x, w = torch.empty(1), torch.zeros(case.n, case.c, case.h, case.w), torch.zeros(case.k, case.c, case.r, case.s)
plan = native.plan(case, "forward", torch.contiguous_format)
workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8)
plan.forward(x.data_ptr(), w.data_ptr(), 0, y.data_ptr(), workspace.data_ptr())'
report=$(LD_PRELOAD=$preload "$python" -c "$overrun" 2>&1) || true
[[ $report == *heap-buffer-overflow* ]] || { echo "AddressSanitizer missed an overrun: $report" >&2; exit 1; }
LD_PRELOAD=$preload "$python" -m pytest -q test_exact.py test_tolerance.py::test_lrn test_tolerance.py::test_pool_and_lrn_half "$@"
