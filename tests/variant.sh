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
  sanitize) options=(-DFASTCONV_SANITIZE=ON) ;;
  avx512) options=(-DFASTCONV_EMULATE_AVX512=ON) ;;
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

# From another folder than the root, so that the sources there are not imported instead.
export PYTHONPATH="$PWD/$build/package"
cd tests
case $python in */*) python=$(cd .. && realpath -s "$python") ;; esac
if [ "$name" = avx512 ]; then
  export FASTCONV_ISA=avx512
  exec "$python" -m pytest -q test_exact.py test_determinism.py "$@"
fi

# Every instruction set of this machine in turn. libstdc++ is preloaded too: ASan needs its __cxa_throw.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
LD_PRELOAD=$preload "$python" -m pytest -q test_exact.py "$@"
