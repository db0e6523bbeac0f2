"""Which algorithms were measured to be the fastest on this machine: the file that `fastconv tune` writes.

The file is read once, before the first convolution, so that a process computes the same bits from its beginning to its
end. It names an algorithm for a problem; whatever in it is wrong or does not apply is ignored, with a warning.
"""

import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastconv import _C

FORMAT = 1
PRIMITIVES = ("forward", "input_gradient", "weight_gradient")
SIZES = (
    "c", "h", "w", "k", "r", "s", "p", "q", "stride_h", "stride_w", "pad_top", "pad_bottom", "pad_left", "pad_right",
    "dilation_h", "dilation_w", "groups",
)  # fmt: skip
KINDS = {"layout": _C.Layout, "weight_layout": _C.Layout, "dtype": _C.Dtype}

Key = tuple[Any, ...]


class Choice(NamedTuple):
    """What was measured of one primitive of one problem."""

    primitive: str
    problem: dict[str, int | str]
    algorithm: str  # the fastest
    seconds: dict[str, float]  # of each that applies
    threads: int
    images: int

    @property
    def key(self) -> Key:
        return (self.primitive, *self.problem.values())


def describe(problem: _C.ConvProblem, primitive: str) -> dict[str, int | str]:
    """All that the choice of an algorithm may depend on.

    For an image that is not the number of images: what a sample gives may not depend on its batch.
    """
    sizes = ("n", *SIZES) if primitive == "weight_gradient" else SIZES
    return {name: getattr(problem, name) for name in sizes} | {name: getattr(problem, name).name for name in KINDS}


def algorithm(problem: _C.ConvProblem, primitive: str) -> str:
    """The tuned algorithm of a problem, or "" where the plan decides."""
    table = _table()
    if not table:
        return ""
    name = table.get((primitive, *describe(problem, primitive).values()), "")
    if not name or name in _C.conv_algorithms(problem, primitive):
        return name
    if problem.allow_winograd:
        _warn_of_inapplicable()
    return ""


@cache
def _table() -> Mapping[Key, str]:
    file = path()
    if file is None or not file.exists():
        return {}
    try:
        choices, broken = load(file)
    except ValueError as error:
        warnings.warn(f"fastconv: {error}; it is ignored. `fastconv tune` writes a new one.", stacklevel=2)
        return {}
    if broken:
        warnings.warn(f"fastconv: {file}: {broken} entries are not understood, and ignored", stacklevel=2)
    return {choice.key: choice.algorithm for choice in choices}


@cache
def _warn_of_inapplicable() -> None:
    warnings.warn(f"fastconv: {path()} names algorithms that do not apply; they are ignored", stacklevel=2)


def known() -> int:
    """How many choices are in use."""
    return len(_table())


def cpu_name() -> str:
    """The processor's model name, with family and model since virtual machines cut the name short."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    return name


def machine() -> dict[str, str]:
    """What a file is for."""
    from fastconv import __version__

    return {"cpu": cpu_name(), "isa": _C.isa(), "fastconv": __version__}


def path() -> Path | None:
    """The file of this machine, or None if FASTCONV_TUNING is "off"; FASTCONV_TUNING may also name another file."""
    setting = os.environ.get("FASTCONV_TUNING", "")
    if setting == "off":
        return None
    if setting:
        return Path(setting)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():  # as the XDG Base Directory Specification has it
        cache_home = Path("~/.cache").expanduser()
    name = re.sub(r"[^a-z0-9.]+", "-", " ".join(machine().values()).lower())
    return cache_home / "fastconv" / f"tuning-{name}.json"


def load(file: Path) -> tuple[list[Choice], int]:
    """The choices of a file, and how many of its entries make no sense. ValueError if it is none for this machine."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"{file}: expected format {FORMAT}, got {data['format']!r}")
        if data["machine"] != machine():
            raise ValueError(f"{file} is for another machine or version of fastconv: {data['machine']}")
        entries = list(data["choices"])
    except (OSError, KeyError, TypeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as tuning: {error!r}") from error
    choices = [_choice(entry) for entry in entries]
    understood = [choice for choice in choices if choice is not None]
    return understood, len(choices) - len(understood)


def _choice(entry: Any) -> Choice | None:
    """An entry of the file, if it is well formed."""
    try:
        primitive, problem = entry["primitive"], entry["problem"]
        sizes = ("n", *SIZES) if primitive == "weight_gradient" else SIZES
        problem = {name: problem[name] for name in (*sizes, *KINDS)}
        choice = Choice(
            primitive, problem, entry["algorithm"], dict(entry["seconds"]), entry["threads"], entry["images"]
        )
    except (KeyError, TypeError, ValueError):
        return None
    sound = (
        primitive in PRIMITIVES
        and all(type(problem[name]) is int for name in sizes)
        and all(type(problem[name]) is str and hasattr(kind, problem[name]) for name, kind in KINDS.items())
        and type(choice.algorithm) is str
    )
    return choice if sound else None


def save(file: Path, choices: list[Choice]) -> None:
    """Adds choices to those of the file, in place of earlier ones for the same problems.

    The file changes from one moment to the next: no process ever reads half of it.
    """
    try:
        before = load(file)[0]
    except ValueError:
        before = []
    merged = {choice.key: choice for choice in (*before, *choices)}
    data = {"format": FORMAT, "machine": machine(), "choices": [choice._asdict() for choice in merged.values()]}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(data, out, indent=1)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
