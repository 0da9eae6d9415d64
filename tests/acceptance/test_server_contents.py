"""Contents up and down: whole or not at all, never out of the bundle, from workers too."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_s3 import S3Server
from managing import eventually
from serving import Server, serving
from wire_worker import InBackground, WireWorker, tar_gz

from bundles.client import Client
from bundles.errors import Conflict, NotFound, ServerFault, UsageError

both_stores = pytest.mark.parametrize("server", ["directory", "s3"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Its contents in a directory, unless it is to be S3."""
    if getattr(request, "param", "directory") == "s3":
        made: Server = S3Server(tmp_path, request.getfixturevalue("s3"))
    else:
        made = Server(tmp_path)
    with serving(made) as running:
        yield running


def kept(server: Server) -> list[str]:
    """What of contents lies where the server has them, and what it has left on its disk."""
    if isinstance(server, S3Server):
        incoming = server.home.path / "contents-cache" / "incoming"
        left = [str(place) for place in incoming.iterdir()]
        return [*server.s3.keys(server.prefix), *server.s3.uploads(server.prefix), *left]
    contents = server.home.path / "contents"
    return [str(place) for place in contents.rglob("*") if place.is_file()]


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    token = server.home.token_path.read_text().strip()
    with httpx.Client(
        base_url=server.url + "/rest/",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=30,
    ) as made:
        yield made


def dataset(client: Client, name: str = "data") -> str:
    document = {"bundle_type": "dataset", "metadata": {"name": name}}
    return client.create([document], wait_for_upload=True)[0].uuid


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def read(client: Client, uuid: str, path: str = "", **options: Any) -> bytes:
    with client.download(uuid, path, **options) as download:
        return b"".join(download.chunks())


@both_stores
def test_a_file_comes_back_as_it_went(client: Client) -> None:
    uuid = dataset(client)
    content = bytes(range(256)) * 20_000
    client.upload(uuid, iter([content[:1000], content[1000:]]), filename="x.bin", finalize=True)
    assert client.bundle(uuid).state == "ready"
    assert read(client, uuid) == content
    info = client.contents_info(uuid)
    assert (info.type, info.size_bytes) == ("file", len(content))
    assert client.bundle(uuid).metadata["data_size"] == len(content)


@both_stores
def test_a_directory_comes_back_whole_and_in_parts(client: Client) -> None:
    uuid = dataset(client)
    large = b"0123456789" * 300_000
    client.upload(
        uuid, tar_gz({"a/x": b"x", "a/b/y": b"yy", "large": large}), filename="d.tar.gz",
        finalize=True,
    )  # fmt: skip
    assert read(client, uuid, "a/x") == b"x"
    assert read(client, uuid, "large") == large
    with client.download(uuid) as download:
        assert download.is_directory
        content = b"".join(download.chunks())
    with tarfile.open(fileobj=io.BytesIO(content)) as made:
        assert sorted(made.getnames()) == ["a", "a/b", "a/b/y", "a/x", "large"]
    info = client.contents_info(uuid, depth=2)
    assert [part.name for part in info.contents] == ["a", "large"]
    assert [part.name for part in info.contents[0].contents] == ["b", "x"]
    assert client.contents_info(uuid, "a/b/y").size_bytes == 2
    with pytest.raises(NotFound):
        read(client, uuid, "a/z")


def test_names_that_are_no_text_are_listed_and_come_back(client: Client) -> None:
    uuid = dataset(client)
    name = os.fsdecode(b"a\xffb")
    client.upload(
        uuid,
        archive((tarfile.TarInfo(name), b"x"), (link("to", name), b"")),
        filename="d.tar.gz",
        finalize=True,
    )
    found = client.contents_info(uuid, depth=1).contents
    assert [(part.name, part.link) for part in found] == [("a\ufffdb", None), ("to", "a\ufffdb")]
    with tarfile.open(fileobj=io.BytesIO(read(client, uuid))) as made:
        assert made.getnames() == [name, "to"]


@both_stores
def test_an_archive_is_kept_as_it_is_on_request(client: Client) -> None:
    uuid, content = dataset(client), tar_gz({"a": b"a"})
    client.upload(uuid, content, filename="d.tar.gz", finalize=True, unpack=False)
    assert read(client, uuid) == content


@both_stores
def test_parts_of_a_file_are_read_by_range(client: Client, http: httpx.Client) -> None:
    uuid = dataset(client)
    client.upload(uuid, b"0123456789", filename="x", finalize=True)
    blob = f"bundles/{uuid}/contents/blob/"
    for asked, expected in (
        ("bytes=2-4", b"234"),
        ("bytes=7-", b"789"),
        ("bytes=-3", b"789"),
        ("bytes=8-100", b"89"),
    ):
        reply = http.get(blob, headers={"Range": asked})
        assert (reply.status_code, reply.content) == (206, expected), asked
        assert "Content-Encoding" not in reply.headers
    for beyond in ("bytes=10-", "bytes=99-100"):
        reply = http.get(blob, headers={"Range": beyond})
        assert (reply.status_code, reply.headers["Content-Range"]) == (416, "bytes */10")
    assert http.get(blob, headers={"Range": "bytes=5-2"}).status_code == 400
    assert http.get(blob, headers={"Range": "lines=1-2"}).status_code == 400


@both_stores
def test_a_download_that_was_cut_goes_on_where_it_was_cut(
    client: Client, http: httpx.Client
) -> None:
    plain = {"Accept-Encoding": "identity"}
    file, directory = dataset(client), dataset(client)
    content = bytes(range(256)) * 8000
    client.upload(file, content, filename="x", finalize=True)
    client.upload(directory, tar_gz({"d/x": content}), filename="d.tar.gz", finalize=True)
    blob = f"bundles/{file}/contents/blob/"
    whole = http.get(blob, headers=plain)
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert whole.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    tag = whole.headers["ETag"]
    rest = http.get(blob, headers=plain | {"Range": "bytes=1000000-", "If-Range": tag})
    assert (rest.status_code, rest.content) == (206, content[1_000_000:])
    assert rest.headers["Repr-Digest"] == whole.headers["Repr-Digest"]
    other = http.get(blob, headers=plain | {"Range": "bytes=1000000-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, content)

    blob = f"bundles/{directory}/contents/blob/"
    whole = http.get(blob)
    tag = whole.headers["ETag"]
    assert tag != rest.headers["ETag"]
    cut = len(whole.content) // 2
    rest = http.get(blob, params={"skip": cut}, headers={"If-Range": tag})
    assert rest.headers["Bundles-Skipped"] == str(cut)
    assert whole.content[:cut] + rest.content == whole.content
    for headers in ({}, {"If-Range": '"other"'}):
        again = http.get(blob, params={"skip": cut}, headers=headers)
        assert "Bundles-Skipped" not in again.headers
        assert again.content == whole.content
    assert http.get(blob, params={"skip": "half"}).status_code == 400


@both_stores
def test_replies_carry_the_headers_that_codalab_clients_read(
    client: Client, http: httpx.Client
) -> None:
    uuid = dataset(client)
    client.upload(uuid, tar_gz({"f": b"content"}), filename="d.tar.gz", finalize=True)
    directory = http.get(f"bundles/{uuid}/contents/blob/")
    assert directory.headers["Content-Type"] == "application/gzip"
    assert directory.headers["Content-Encoding"] == "identity"
    assert directory.headers["Target-Type"] == "directory"
    file = http.get(f"bundles/{uuid}/contents/blob/f", headers={"Accept-Encoding": "gzip"})
    assert file.headers["Content-Encoding"] == "gzip"
    assert file.headers["X-Codalab-Target-Size"] == "7"
    plain = http.get(f"bundles/{uuid}/contents/blob/f", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert file.content == plain.content == b"content"


@pytest.mark.parametrize(
    "content",
    [
        b"no archive at all",
        tar_gz({"a": b"a" * 1000})[:-20],
        archive((tarfile.TarInfo("../out"), b"x")),
        archive((tarfile.TarInfo("/out"), b"x")),
        archive((link("l", "/etc/passwd"), b"")),
        archive((link("l", "../../out"), b"")),
        archive((link("h", "../../token", tarfile.LNKTYPE), b"")),
        archive((link("d", "", tarfile.CHRTYPE), b"")),
    ],
    ids=["none", "cut", "dotdot", "absolute", "link", "linkup", "hardlink", "device"],
)
def test_a_bad_archive_is_refused_and_nothing_of_it_stays(
    server: Server, client: Client, content: bytes
) -> None:
    uuid = dataset(client)
    with pytest.raises(UsageError, match="archive"):
        client.upload(uuid, content, filename="d.tar.gz", finalize=True)
    failed = client.bundle(uuid)
    assert failed.state == "failed"
    assert "archive" in failed.metadata["failure_message"]
    assert kept(server) == []
    with pytest.raises(NotFound):
        client.contents_info(uuid)


@both_stores
def test_links_inside_are_followed_and_paths_do_not_leave(client: Client) -> None:
    uuid = dataset(client)
    content = archive((tarfile.TarInfo("f"), b"content"), (link("l", "f"), b""))
    client.upload(uuid, content, filename="d.tar.gz", finalize=True)
    assert client.contents_info(uuid, "l").type == "link"
    assert read(client, uuid, "l") == b"content"
    for path in ("%2e%2e/token", "a/%2e%2e/%2e%2e/x"):
        reply = client._http.get(
            f"bundles/{uuid}/contents/blob/{path}",
            headers={"Authorization": f"Bearer {client._token()}"},
        )
        assert reply.status_code in (400, 404)


@both_stores
def test_contents_are_final_once_they_are_there(client: Client) -> None:
    uuid = dataset(client)
    client.upload(uuid, b"1", filename="x", finalize=True)
    with pytest.raises(Conflict):
        client.upload(uuid, b"2", filename="x", finalize=True)
    assert read(client, uuid) == b"1"


@both_stores
def test_an_upload_that_is_cut_off_leaves_nothing(server: Server, client: Client) -> None:
    uuid = dataset(client)

    def cut() -> Iterator[bytes]:
        yield bytes(3 * 1024**2)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        client.upload(uuid, cut(), filename="x", finalize=True)
    client.upload(uuid, b"whole", filename="x", finalize=True)
    assert read(client, uuid) == b"whole"
    # The server learns of the cut when it gets round to reading.
    eventually(lambda: len(kept(server)) == 1, "one file")


@both_stores
def test_a_bundle_that_others_depend_on_is_deleted_by_force_only(
    server: Server, client: Client
) -> None:
    uuid = dataset(client)
    client.upload(uuid, b"1", filename="x", finalize=True)
    dependency = {"child_path": "d", "parent_uuid": uuid}
    document = {"bundle_type": "run", "command": "true", "dependencies": [dependency]}
    child = client.create([document])[0].uuid
    with pytest.raises(Conflict, match=child):
        client.delete([uuid])
    assert client.delete([uuid, child]) == [uuid, child]
    with pytest.raises(NotFound):
        client.bundle(uuid)
    # Contents go in the background; a server that ends sees to the rest when it starts.
    server.stop()
    server.start()
    with server.client() as again:
        other = dataset(again)
        again.upload(other, b"2", filename="x", finalize=True)
    parent = client.create([document | {"dependencies": []}])[0].uuid
    waiting = {"child_path": "p", "parent_uuid": parent}
    child = client.create([document | {"dependencies": [waiting]}])[0].uuid
    client.delete([parent], force=True)
    assert client.bundle(child).state == "failed"


def test_a_running_bundle_is_not_deleted(client: Client) -> None:
    worker = WireWorker(client)
    uuid = client.create([{"bundle_type": "run", "command": "true"}])[0].uuid
    worker.take()
    with pytest.raises(Conflict):
        client.delete([uuid], force=True)


def running(client: Client, worker: WireWorker) -> dict[str, Any]:
    client.create([{"bundle_type": "run", "command": "true"}])
    message = worker.take()
    worker.say(worker.run(message, "running"))
    return message


def next_read(worker: WireWorker, message: dict[str, Any]) -> dict[str, Any]:
    """The next question; acknowledged."""
    [question] = worker.say(worker.run(message, "running"), wait_seconds=20)
    assert question["type"] == "read"
    assert question["uuid"] == message["uuid"]
    worker.say(worker.run(message, "running"), acknowledged=[question])
    return question


FILE = {"name": "stdout", "type": "file", "size": 10, "perm": 0o644}


def test_a_running_bundle_is_read_from_its_worker(client: Client) -> None:
    worker = WireWorker(client)
    message = running(client, worker)
    info = InBackground(lambda: client.contents_info(message["uuid"], "stdout"))
    question = next_read(worker, message)
    assert question["read_args"] == {"type": "get_target_info", "depth": 0}
    client.reply("w", question["socket_id"], {"target_info": FILE})
    assert info.result().size_bytes == 10

    part = InBackground(lambda: read(client, message["uuid"], "stdout", byte_range=(4, 20)))
    question = next_read(worker, message)
    client.reply("w", question["socket_id"], {"target_info": FILE})
    question = next_read(worker, message)
    assert question["read_args"] == {"type": "read_file_section", "offset": 4, "length": 6}
    client.reply_data("w", question["socket_id"], {}, gzip.compress(b"456789"))
    assert part.result() == b"456789"

    whole = InBackground(lambda: read(client, message["uuid"], "stdout"))
    question = next_read(worker, message)
    client.reply("w", question["socket_id"], {"target_info": FILE})
    question = next_read(worker, message)
    assert question["read_args"]["type"] == "stream_file"
    content = gzip.compress(b"0123456789" * 100_000, compresslevel=0)
    client.reply_data("w", question["socket_id"], {}, iter([content[:5000], content[5000:]]))
    assert whole.result() == b"0123456789" * 100_000


def test_what_a_worker_cannot_read_is_said_in_its_words(client: Client) -> None:
    worker = WireWorker(client)
    message = running(client, worker)
    for code, kind in ((404, NotFound), (500, NotFound), (400, UsageError)):
        asked = InBackground(lambda: client.contents_info(message["uuid"], "nothing"))
        question = next_read(worker, message)
        client.reply("w", question["socket_id"], {"error_code": code, "error_message": "no file"})
        with pytest.raises(kind, match="no file"):
            asked.result()
    with pytest.raises(NotFound):
        client.reply("w", question["socket_id"], {"target_info": FILE})


def test_a_worker_that_does_not_answer_is_given_up_on(client: Client) -> None:
    worker = WireWorker(client)
    message = running(client, worker)
    with pytest.raises(ServerFault, match="did not answer"):
        client.contents_info(message["uuid"], "stdout")


def test_a_bundle_without_contents_says_so(client: Client) -> None:
    uuid = client.create([{"bundle_type": "run", "command": "true"}])[0].uuid
    with pytest.raises(NotFound, match="staged"):
        client.contents_info(uuid)
    with pytest.raises(NotFound, match="staged"):
        read(client, uuid, "stdout")
