"""Optional dependencies: what `pip install fastconv[all]` adds, and a clear message where it is missing."""

from importlib import import_module
from types import ModuleType

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # where the module is not named as its distribution


class MissingDependency(ImportError):
    """A package that only some features need is not installed; the message says how to install it."""


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise MissingDependency; `purpose` is the beginning of "... needs rich"."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        name = DISTRIBUTIONS.get(package, package)
        message = f"{purpose} needs {name}, which is not installed: pip install 'fastconv[all]'"
        raise MissingDependency(message, name=package) from error
