"""Checks, when imported, that the compiled kernels and the Python files beside them are of one version."""

import hashlib
from pathlib import Path

from fastconv import _C

_expected = hashlib.sha256(Path(__file__).with_name("_C.pyi").read_bytes()).hexdigest()
if getattr(_C, "interface", "") != _expected:
    raise ImportError(
        f"fastconv: the compiled kernels {_C.__file__} belong to another version than the Python files beside them; "
        "install fastconv again (pip install .)"
    )
