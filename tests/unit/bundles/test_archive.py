from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from bundles.archive import ChunkStream, check_path, pack, unpack
from bundles.errors import UsageError


def packed(root: Path, exclude: Iterable[str] = ()) -> bytes:
    return b"".join(pack(root, exclude=tuple(exclude)))


def archive_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


def file(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"one")
    (root / "deep" / "big.bin").write_bytes(os.urandom(700_001))
    (root / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "deep" / "run.sh").chmod(0o755)
    (root / "inside").symlink_to("deep/run.sh")
    return root


def test_what_was_packed_is_unpacked_the_same(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    size_bytes = unpack(io.BytesIO(packed(tree)), destination)
    assert size_bytes == 3 + 700_001 + 10
    assert (destination / "a.txt").read_bytes() == b"one"
    assert (destination / "deep/big.bin").read_bytes() == (tree / "deep/big.bin").read_bytes()
    assert os.access(destination / "deep/run.sh", os.X_OK)
    assert os.readlink(destination / "inside") == "deep/run.sh"
    assert (destination / "deep/empty").is_dir()


def test_names_longer_than_a_tar_header_survive(tmp_path: Path) -> None:
    root, destination = tmp_path / "tree", tmp_path / "out"
    name = "ü" * 90 + "/" + "n" * 200
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(b"here")
    destination.mkdir()
    unpack(io.BytesIO(packed(root)), destination)
    assert (destination / name).read_bytes() == b"here"


def test_any_tar_reads_what_is_packed(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
        assert "deep/big.bin" in archive.getnames()


def test_excluded_names_and_paths_stay_behind(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(tree, ["*.txt", "deep/big*"]))) as archive:
        assert archive.getnames() == ["deep", "deep/empty", "deep/run.sh", "inside"]


def test_links_that_leave_and_special_files_are_not_packed(tree: Path) -> None:
    (tree / "absolute").symlink_to("/etc/passwd")
    (tree / "up").symlink_to("../../secret")
    os.mkfifo(tree / "pipe")
    with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
        assert not {"absolute", "up", "pipe"} & set(archive.getnames())


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([file("/etc/evil")], "leaves"),
        ([file("../evil")], "leaves"),
        ([file("a/../../evil")], "leaves"),
        ([link("out", "/etc")], "leaves"),
        ([link("out", "../..")], "leaves"),
        ([link("d", "."), file("d/evil")], "through the link"),
        ([link("hard", "../../etc/passwd", tarfile.LNKTYPE)], "leaves"),
        ([link("hard", "nowhere", tarfile.LNKTYPE)], "not a file"),
        ([link("s", "x"), link("hard", "s", tarfile.LNKTYPE)], "not a file"),
        ([link("null", "", tarfile.CHRTYPE)], "not a file, directory"),
        ([link("pipe", "", tarfile.FIFOTYPE)], "not a file, directory"),
        (
            # Each link stays inside by its text; followed, the second one does not.
            [file("a/b/c/f"), link("a/b/c/l", "../../.."), link("m", "a/b/c/l/../..")],
            "leaves",
        ),
        (
            # The same, in the order in which neither leaves when it is made.
            [file("a/b/c/f"), link("m", "a/b/c/l/../.."), link("a/b/c/l", "../../..")],
            "leaves",
        ),
    ],
)
def test_an_archive_that_reaches_out_is_refused(
    members: list[tuple[tarfile.TarInfo, bytes]], says: str, tmp_path: Path
) -> None:
    destination = tmp_path / "deep" / "out"
    destination.mkdir(parents=True)
    with pytest.raises(UsageError, match=says):
        unpack(archive_of(*members), destination)
    assert not list(tmp_path.rglob("evil"))


def test_a_later_file_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    unpack(archive_of(file("kept"), link("name", "kept"), file("name", b"new")), destination)
    assert (destination / "kept").read_bytes() == b"x"
    assert (destination / "name").read_bytes() == b"new"


def test_hard_links_inside_the_archive_are_kept(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    unpack(archive_of(file("one", b"same"), link("two", "one", tarfile.LNKTYPE)), destination)
    assert (destination / "two").read_bytes() == b"same"


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b"no"])
def test_a_cut_or_damaged_archive_is_refused(
    damage: Callable[[bytes], bytes], tree: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    with pytest.raises(UsageError, match="cannot be unpacked"):
        unpack(io.BytesIO(damage(packed(tree))), destination)


def test_a_plain_tar_is_read_too(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    unpack(archive_of(file("a"), mode="w"), destination)
    assert (destination / "a").read_bytes() == b"x"


def test_an_error_of_the_stream_is_not_taken_for_damage(tree: Path, tmp_path: Path) -> None:
    def cut() -> Iterable[bytes]:
        yield packed(tree)[:1000]
        raise ConnectionResetError

    destination = tmp_path / "out"
    destination.mkdir()
    with pytest.raises(ConnectionResetError):
        unpack(ChunkStream(cut()), destination)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "nul\0"])
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="leaves"):
        check_path(path)
