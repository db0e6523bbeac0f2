"""A small set of real text that is there already: docstrings of installed packages, to be told apart by package."""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = {"matplotlib": "matplotlib", "numpy": "numpy", "scikit-learn": "sklearn", "torch": "torch"}
HIDDEN = {"matplotlib", "mpl", "numpy", "np", "sklearn", "scikit", "torch", "pytorch"}  # words that name a package
MOST = 800  # docstrings of a package
FEWEST_WORDS = 8
PADDING, UNKNOWN = "", "?"


def docstrings(module: str) -> tuple[list[list[str]], list[list[str]]]:
    """Training and test docstrings of an installed package, as words: every fifth file's are for the test.

    The package is not imported. Its files, but for its tests, are taken in an order that is always the same until there
    are enough docstrings: which ones these are depends on the package's version.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module, name=module)
    root = Path(spec.origin).parent
    files = sorted(file for file in root.rglob("*.py") if "test" not in str(file.relative_to(root)))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    parts: tuple[list[list[str]], list[list[str]]] = ([], [])
    known = set()
    for place, index in enumerate(order):
        for text in _docstrings(files[index]):
            text_words = [word for word in words(text) if word not in HIDDEN]
            if len(text_words) >= FEWEST_WORDS and (key := " ".join(text_words)) not in known:
                known.add(key)
                parts[place % 5 == 4].append(text_words)
        if len(known) >= MOST:
            break
    return parts


def _docstrings(file: Path) -> Iterator[str]:
    """Of the functions and classes of a Python file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def words(text: str) -> list[str]:
    """In small letters; signs and digits part them."""
    return re.findall(r"[a-z]+", text.lower())


def vocabulary(texts: Sequence[list[str]], most: int) -> list[str]:
    """The commonest words, at most `most` with the two that stand for the end of a text and for any other word."""
    counts = Counter(word for text in texts for word in text)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return [PADDING, UNKNOWN, *ordered][:most]


def numbers(texts: Sequence[list[str]], known: Sequence[str], length: int) -> Tensor:
    """The places of the words in `known`, int64 (texts, length): long texts are cut, short ones filled up with 0."""
    place = {word: index for index, word in enumerate(known)}
    result = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(result, texts, strict=True):
        found = [place.get(word, 1) for word in text[:length]]
        row[: len(found)] = torch.tensor(found, dtype=torch.int64)
    return result
