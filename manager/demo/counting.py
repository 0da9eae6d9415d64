"""Counts identifiers in Python files: what the demo's bundles run, and what it checks them by.

Runs on its own (`counting.py count ROOT NUMBER OF`, `counting.py merge FILE…`), so that it can be
uploaded; prints JSON. Imports nothing but the standard library.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def shard(root: Path, number: int, of: int) -> list[Path]:
    """Every ``of``-th Python file under ``root`` from the ``number``-th on, by name."""
    return sorted(root.rglob("*.py"))[number::of]


def identifiers(source: bytes) -> Iterator[str]:
    """Every identifier of a module, as often as it stands there; of what is no Python, none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def count(files: Iterable[Path]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for file in files:
        counted.update(identifiers(file.read_bytes()))
    return counted


def merge(files: Iterable[Path]) -> Counter[str]:
    merged: Counter[str] = Counter()
    for file in files:
        merged.update(json.loads(file.read_text()))
    return merged


def main(argv: Sequence[str]) -> None:
    if argv[0] == "count":
        counted = count(shard(Path(argv[1]), int(argv[2]), int(argv[3])))
    else:
        counted = merge(map(Path, argv[1:]))
    json.dump(counted, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
