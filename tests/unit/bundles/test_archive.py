from __future__ import annotations

import errno
import gzip
import io
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundles.archive import CHUNK_BYTES, ChunkStream, _Member, check_path, header_of, pack, unpack
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
        ([file("a/" * 300 + "f")], "levels deep"),
        ([link("d", "", tarfile.DIRTYPE), file("d")], "both as a file and a directory"),
        ([file("f"), file("f/under")], "both as a file and a directory"),
        ([link("l", "f"), link("l", "", tarfile.DIRTYPE)], "both as a link and a directory"),
        ([link("l", "."), link("hard", "l/f", tarfile.LNKTYPE)], "not a file"),
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


def test_no_mode_gives_anyone_more_than_its_owner_has(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    program, data, directory = file("program"), file("data"), link("d", "", tarfile.DIRTYPE)
    program[0].mode, data[0].mode, directory[0].mode = 0o6777, 0o4066, 0o7777
    unpack(archive_of(program, data, directory), destination)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in destination.iterdir()}
    assert modes == {"program": 0o755, "data": 0o644, "d": 0o755 & ~umask()}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sparse(tmp_path: Path, size_bytes: int) -> Path:
    """An archive of one file with three bytes at its end and a hole before."""
    with (tmp_path / "holes").open("wb") as holes:
        holes.truncate(size_bytes)
        holes.seek(size_bytes - 3)
        holes.write(b"end")
    archive = tmp_path / "sparse.tar.gz"
    subprocess.run(["tar", "-cSzf", archive, "-C", tmp_path, "holes"], check=True)
    return archive


def test_holes_stay_holes(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    with sparse(tmp_path, 2**30).open("rb") as archive:
        assert unpack(archive, destination) == 2**30
    holes = destination / "holes"
    assert holes.stat().st_size == 2**30
    assert holes.stat().st_blocks * 512 < 2**20
    with holes.open("rb") as content:
        content.seek(-4, os.SEEK_END)
        assert content.read() == b"\0end"


def test_a_directory_that_becomes_a_link_while_it_is_packed_leads_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    (root / "d" / "secret").write_bytes(os.urandom(CHUNK_BYTES))
    (root / "a").write_bytes(os.urandom(4 * CHUNK_BYTES))
    outside.mkdir()
    (outside / "secret").write_text("of another")
    chunks = pack(root)
    begun = next(chunks)
    (root / "d").rename(root / "elsewhere")
    (root / "d").symlink_to(outside)
    whole = gzip.decompress(b"".join([begun, *chunks]))
    assert b"of another" not in whole


def test_directories_too_deep_in_each_other_are_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        inside = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inside
    os.close(descriptor)
    with pytest.raises(UsageError, match="more than 200 directories"):
        list(pack(tmp_path))
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # which pytest could not


@pytest.mark.parametrize("name", ["holes", "d/" + "long" * 60 + "/holes", "new\nline", "\udcff"])
def test_holes_are_packed_as_holes(tmp_path: Path, name: str) -> None:
    root, destination = tmp_path / "root", tmp_path / "out"
    (root / name).parent.mkdir(parents=True)
    destination.mkdir()
    with (root / name).open("wb") as holes:
        holes.write(b"begin")
        for offset in (3 * 2**20, 3 * 2**20 + 9000, 2**32):
            holes.seek(offset)
            holes.write(b"here")
        holes.truncate(2**33)
    (root / "zzz").write_text("after it")
    archive = b"".join(pack(root))
    assert len(archive) < 2**16
    monster = destination / name
    assert unpack(io.BytesIO(archive), destination) == 2**33 + len("after it")
    assert (destination / "zzz").read_text() == "after it"
    assert monster.stat().st_size == 2**33
    assert monster.stat().st_blocks * 512 < 2**20
    with monster.open("rb") as content:
        for offset in (3 * 2**20, 3 * 2**20 + 9000, 2**32):
            content.seek(offset)
            assert content.read(5) == b"here\0"
        content.seek(0)
        assert content.read(6) == b"begin\0"


@pytest.mark.parametrize("content", [b"", b"at the end"])
def test_any_tar_reads_packed_holes(tmp_path: Path, content: bytes) -> None:
    root, destination = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    destination.mkdir()
    with (root / "holes").open("wb") as holes:
        holes.truncate(2**32 - len(content))
        holes.seek(0, os.SEEK_END)
        holes.write(content)
    archive = b"".join(pack(root))
    subprocess.run(["tar", "-xzf", "-", "-C", destination], input=archive, check=True)
    assert (destination / "holes").stat().st_size == 2**32
    with (destination / "holes").open("rb") as unpacked:
        unpacked.seek(-10, os.SEEK_END)
        assert unpacked.read() == content.rjust(10, b"\0")


def test_holes_that_stand_for_more_than_the_disk_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    real = os.statvfs(tmp_path)
    little = SimpleNamespace(f_bavail=2**20 // real.f_frsize, f_frsize=real.f_frsize)
    monkeypatch.setattr(os, "statvfs", lambda _: little)
    with (
        sparse(tmp_path, 2**30).open("rb") as archive,
        pytest.raises(OSError, match="stands for more") as caught,
    ):
        unpack(archive, destination)
    assert caught.value.errno == errno.ENOSPC


def test_hard_links_that_stand_for_more_than_the_disk_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=1000))
    links = [link(f"l{n}", "f", tarfile.LNKTYPE) for n in range(11)]
    with pytest.raises(OSError, match="stands for more") as caught:
        unpack(archive_of(file("f", bytes(1000)), *links), destination)
    assert caught.value.errno == errno.ENOSPC


def test_a_great_many_entries_cost_no_memory(tmp_path: Path) -> None:
    """One small file, its name four thousand times: tarfile would remember each."""
    destination = tmp_path / "out"
    destination.mkdir()
    archive = archive_of(*[file("same")] * 4_000)
    tracemalloc.start()
    try:
        unpack(archive, destination)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * 2**20
    assert (destination / "same").read_bytes() == b"x"


def test_the_same_directory_is_packed_to_the_same_bytes(tree: Path) -> None:
    assert packed(tree) == packed(tree)


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


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("damage", [None, 0, 50, 101, 130, 140, 150, 156, 157, 200, 345, 400])
def test_a_header_that_is_read_fast_says_what_tarfile_reads_in_it(
    form: int, damage: int | None
) -> None:
    def read(kind: type[tarfile.TarInfo], header: bytes) -> object:
        try:
            member = kind.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return str(error)
        return member.name, member.mode, member.size, member.mtime, member.type, member.linkname

    names = ("a", "d/" * 60 + "f", "ä" * 40, "n" * 99, "n" * 100)
    for name, size_bytes in zip(names, (0, 1, 3000, 8**11 - 1, 7), strict=True):
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size_bytes, 0o755, 1_700_000_000
        blocks = member.tobuf(form, "utf-8", "surrogateescape")
        header = bytearray(blocks[-tarfile.BLOCKSIZE :])
        for value in (0, ord("8"), ord("-"), ord(" "), 0xFF) if damage is not None else (0,):
            changed = bytearray(header)
            if damage is not None:
                changed[damage] = value
            for is_checked in (False, True):
                if is_checked:
                    changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + sum(changed[156:]) + 256)
                expected = read(tarfile.TarInfo, bytes(changed))
                assert read(_Member, bytes(changed)) == expected


@pytest.mark.parametrize("name", ["a", "d/f", "n" * 100, "n" * 101, "d/" * 60 + "f", "ä"])
@pytest.mark.parametrize("size_bytes", [0, 1, 8**11 - 1, 8**11])
@pytest.mark.parametrize("mtime", [-1, 0, 1_700_000_000, 8**11 - 1, 8**11])
def test_a_header_that_is_made_fast_is_tarfile_s(name: str, size_bytes: int, mtime: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size_bytes, mtime
    for member.mode in (0, 0o644, 0o7777):
        assert header_of(member) == member.tobuf(tarfile.PAX_FORMAT)
