"""This tree as a wheel that needs no registry, and a Python that every user of the machine may run:
the tests' own, and what is installed in it, may lie in a directory that is root's alone."""

from __future__ import annotations

import shutil
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from host_files import LEFT_OUT
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("manager", "backends", "worker", "bundles")
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def copy_python(directory: Path) -> Path:
    """This interpreter and its library, without packages; the program."""
    base = Path(sys.base_prefix)
    shutil.copytree(
        base / "lib" / VERSION,
        directory / "lib" / VERSION,
        ignore=lambda _, names: [name for name in names if name.startswith(LEFT_OUT)],
    )
    for library in base.glob("lib/libpython*"):
        shutil.copy2(library, directory / "lib", follow_symlinks=False)
    program = directory / "bin" / VERSION
    program.parent.mkdir()
    # Where it looks for its library, in as many bytes.
    there, here = f"{base}/lib".encode(), b"$ORIGIN/../lib"
    content = (base / "bin" / VERSION).read_bytes()
    program.write_bytes(content.replace(there + b"\0", here.ljust(len(there) + 1, b"\0")))
    program.chmod(0o755)
    program.with_name("python3").symlink_to(VERSION)
    return program


def copy_dependencies(directory: Path) -> None:
    """What the package needs without its extras, as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not applies or requirement.name in seen:
            continue
        seen.add(requirement.name)
        installed = distribution(requirement.name)
        waiting += [Requirement(text) for text in installed.requires or ()]
        for file in installed.files or ():
            if ".." not in file.parts:
                place = directory / file
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), place)


def make_wheel(directory: Path, dependencies: Path) -> Path:
    """A wheel of the tree that requires nothing, and finds what it needs where it lies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = [f"{name} = {where}" for name, where in project["scripts"].items()]
    wheel = directory / "worker_manager-0-py3-none-any.whl"
    about = "worker_manager-0.dist-info"
    with zipfile.ZipFile(wheel, "w") as made:
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    made.write(path, path.relative_to(ROOT))
        made.writestr("worker_manager_dependencies.pth", f"{dependencies}\n")
        made.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: worker-manager\nVersion: 0\n"
        )
        made.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{about}/entry_points.txt", "\n".join(("[console_scripts]", *commands, "")))
        rows = [f"{name},,\n" for name in [*made.namelist(), f"{about}/RECORD"]]
        made.writestr(f"{about}/RECORD", "".join(rows))
    return wheel
