"""deploy/slurm/install before it has a Python of its own: which one it takes, and what it leaves
when it goes no further. Pythons are stand-ins, and nothing else is on PATH but tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/install"
TOOLS = "bash cat chmod dirname flock grep head id ls mkdir mv realpath rm rmdir sed tail tar uname"

# What the installer asks a Python: its version, its parts, an environment, pip in that.
PYTHON = """#!/bin/bash
case "$*" in
    --version) echo Python {version} ;;
    *version_info*) exit {too_old} ;;
    "-c import"*) [ -z "{lacks}" ] || {{ echo "No module named '{lacks}'" >&2; exit 1; }} ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo "$@" > "$HOME/asked"; ls -A "${{@: -1}}" > "$HOME/given"; exit 1 ;;
esac
"""


class Login:
    """A home, and a PATH with what is put there."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.prefix = self.home / ".worker-manager"
        self.programs = directory / "bin"
        for place in (self.home, self.programs):
            place.mkdir()
        for tool in [*TOOLS.split(), "cp"]:
            where = shutil.which(tool)
            assert where is not None, tool
            (self.programs / tool).symlink_to(where)

    def program(self, place: Path, text: str) -> Path:
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)
        return place

    def python(self, name: str, version: str, *, lacks: str = "", elsewhere: str = "") -> Path:
        """Of that version, and without that module; on PATH unless it is elsewhere."""
        too_old = int(tuple(map(int, version.split("."))) < (3, 11, 4))
        place = self.home.parent / elsewhere / name if elsewhere else self.programs / name
        return self.program(place, PYTHON.format(version=version, too_old=too_old, lacks=lacks))

    def install(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *words],
            env={"HOME": str(self.home), "PATH": str(self.programs)},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_a_login_node_whose_pythons_are_too_old_is_told_which_it_has_and_what_to_do(
    login: Login,
) -> None:
    old = login.python("python3", "3.6.8")
    done = login.install("--from", ".")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("install: Python 3.11.4 or later is needed")
    assert f"{old} is Python 3.6.8" in line
    assert "module avail python" in line
    assert not login.prefix.exists()


def test_the_newest_python_on_path_is_taken(login: Login) -> None:
    login.python("python3", "3.9.21")
    login.python("python3.11", "3.11.9")
    newest = login.python("python3.13", "3.13.0")
    done = login.install("--from", ".", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"installing . with {newest} " in done.stdout
    assert not login.prefix.exists()


def test_a_python_that_lacks_a_part_is_passed_over_and_says_which(login: Login) -> None:
    poor = login.python("python3.13", "3.13.0", lacks="sqlite3")
    done = login.install("--from", ".")
    assert f"{poor} lacks No module named 'sqlite3'" in done.stderr
    whole = login.python("python3.12", "3.12.1")
    done = login.install("--from", ".", "--dry-run")
    assert f"installing . with {whole} " in done.stdout


def test_a_python_of_uv_is_taken_where_path_has_none(login: Login) -> None:
    login.python("python3", "3.6.8")
    managed = login.python("python3.12", "3.12.1", elsewhere="managed")
    login.program(login.programs / "uv", f'#!/bin/bash\n[ "$2" = find ] && echo {managed}\n')
    done = login.install("--from", ".", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"installing . with {managed} " in done.stdout


def test_a_python_that_is_named_is_taken_or_refused_alone(login: Login) -> None:
    login.python("python3.13", "3.13.0")
    old = login.python("python3", "3.9.21", elsewhere="a module")
    done = login.install("--from", ".", "--python", old)
    assert done.returncode == 1
    assert f"{old} is Python 3.9.21" in done.stderr
    done = login.install("--from", ".", "--python", "python3.14")
    assert "there is no python3.14" in done.stderr
    old.unlink()
    new = login.python("python3", "3.12.1", elsewhere="a module")
    done = login.install("--from", ".", "--python", "../a module/python3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"installing . with {new} " in done.stdout


def test_a_tree_that_may_not_be_written_is_built_from_a_copy_and_a_failure_leaves_nothing(
    login: Login,
) -> None:
    login.python("python3.12", "3.12.1")
    tree = login.home / "clone"
    for name in ("manager", ".venv", "build", ".git", "worker_manager.egg-info"):
        (tree / name).mkdir(parents=True)
    (tree / "constraints.txt").touch()
    (tree / "pyproject.toml").touch()
    before = sorted(tree.rglob("*"))
    done = login.install("--from", tree)
    assert done.returncode == 1
    assert "where there is no network it takes wheels" in done.stderr
    copy = login.prefix / "versions/1/source"
    asked = (login.home / "asked").read_text().split()
    assert asked[-3:] == ["--constraint", f"{copy}/constraints.txt", str(copy)]
    given = (login.home / "given").read_text().split()
    assert sorted(given) == ["constraints.txt", "manager", "pyproject.toml"]
    assert sorted(tree.rglob("*")) == before
    assert not login.prefix.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--form", "."), "there is no option --form"),
        (("--from",), "--from needs a value"),
        (("--from", "--dry-run"), "--from --dry-run is no package"),
        (("--prefix", "here"), "--prefix here is not an absolute path"),
        (("--prefix", "/tmp/two words"), "without spaces and signs"),
        (("--prefix", os.fspath(SCRIPT.parent)), "has other files in it"),
        (("--pools", "/"), "--pools / is no file that can be read"),
        (("--pools", "missing.toml"), "--pools missing.toml is no file that can be read"),
        (("--terminate-workers",), "--terminate-workers goes with --uninstall"),
    ],
)
def test_words_that_make_no_sense_are_refused_in_a_line_before_anything_is_done(
    login: Login, words: tuple[str, ...], said: str
) -> None:
    login.python("python3.12", "3.12.1")
    done = login.install(*words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not login.prefix.exists()
