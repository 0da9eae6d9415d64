"""Archives of this machine's own programs, with all that they are linked with: bases for images
that need no registry."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

LEFT_OUT = ("site-packages", "test", "idlelib", "lib2to3", "tkinter", "turtledemo", "config-")
"""Of Python's library: what the image does not need, or brings itself."""

OF_WHEELS = (
    *("libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1"),
    *("libstdc++.so.6", "libutil.so.1"),
)
"""Libraries that every manylinux wheel may take for granted."""


def archive(
    tools: Iterable[str], *, with_python: bool = False, and_also: Mapping[str, Path] | None = None
) -> bytes:
    """A tar of a small Debian: these programs, a shell, this Python in /usr/local if wanted, and
    files by their names in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name in ("bin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            made.addfile(link)
        tmp = tarfile.TarInfo("tmp")
        tmp.type, tmp.mode = tarfile.DIRTYPE, 0o1777
        made.addfile(tmp)
        files: dict[str, Path] = {}
        for tool in tools:
            found = shutil.which(tool, path="/usr/bin:/bin")
            assert found is not None, f"this machine has no {tool}"
            files[f"usr/bin/{tool}"] = Path(found).resolve()
        files["usr/bin/sh"] = files["usr/bin/bash"]
        if with_python:
            files |= _python()
        files |= and_also or {}
        libraries = {library for path in files.values() for library in _libraries(path)}
        if with_python:
            (libc,) = (library for library in libraries if library.name == "libc.so.6")
            beside = (libc.with_name(name) for name in OF_WHEELS)
            libraries |= {library for library in beside if library.exists()}
        files |= {_name_in_image(library): library.resolve() for library in libraries}
        for name, path in files.items():
            made.add(path, name)
    return buffer.getvalue()


def _python() -> dict[str, Path]:
    """The interpreter and its library: it finds the one by where the other lies."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix) / "bin" / version
    files = {f"usr/local/bin/{name}": program.resolve() for name in ("python3", version)}
    library = Path(sys.base_prefix) / "lib" / version
    for path in library.rglob("*"):
        inside = path.relative_to(library)
        is_needed = not inside.parts[0].startswith(LEFT_OUT) and ".opt-" not in path.name
        if path.is_file() and is_needed:
            files[f"usr/local/lib/{version}/{inside}"] = path
    return files


def _libraries(path: Path) -> list[Path]:
    """What a program or an extension module is linked with."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split()]
    return [Path(word) for word in words if word.startswith("/")]


def _name_in_image(library: Path) -> str:
    """`/lib64/ld.so` as it lies in an image where /lib and /lib64 are links into /usr; what lies
    in a place of its own goes to where the loader looks anyway."""
    match library.parts[1]:
        case "usr":
            return str(library).lstrip("/")
        case "lib" | "lib64":
            return f"usr{library}"
    return f"usr/lib/{library.name}"
