"""Contents in S3: what a new machine finds, what others' remains, what becomes of requests while S3
fails. What holds of contents wherever they lie is in test_server_contents.py."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from disks import needs_root, small_disk
from fake_s3 import BUCKET, CUT, HANG, REPLY_LOST, FakeS3, S3Server
from managing import eventually
from serving import Server, serving
from wire_worker import InBackground, tar_gz
from worker_process import WorkerProcess

from bundles.client import Client
from bundles.errors import DiskFull, NotFound, ServerFault
from bundles.home import Home

LARGE_BYTES = 40 * 1024**2
"""More than one part."""


@pytest.fixture
def server(tmp_path: Path, s3: FakeS3) -> Iterator[S3Server]:
    with serving(S3Server(tmp_path, s3)) as running:
        yield running  # type: ignore[misc]


@pytest.fixture
def client(server: S3Server) -> Iterator[Client]:
    with server.client() as made:
        yield made


def dataset(client: Client, content: bytes, filename: str = "x") -> str:
    document = {"bundle_type": "dataset", "metadata": {"name": "data"}}
    uuid = client.create([document], wait_for_upload=True)[0].uuid
    client.upload(uuid, content, filename=filename, finalize=True)
    return uuid


def read(client: Client, uuid: str, path: str = "") -> bytes:
    with client.download(uuid, path) as download:
        return b"".join(download.chunks())


def authorization(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.home.token_path.read_text().strip()}"}


def blob(server: Server, uuid: str) -> str:
    return f"{server.url}/rest/bundles/{uuid}/contents/blob/"


# Where they lie


def test_a_new_machine_with_the_same_database_has_everything(s3: FakeS3, tmp_path: Path) -> None:
    large = os.urandom(LARGE_BYTES)
    database = ("--database", f"sqlite:///{tmp_path / 'the.sqlite'}")
    first, second = S3Server(tmp_path, s3), S3Server(tmp_path, s3)
    second.home = type(first.home)(tmp_path / "another")
    second.env |= {"WORKER_MANAGER_HOME": str(second.home.path)}
    plain = {"Accept-Encoding": "identity"}
    first.start(*database)
    try:
        with first.client() as client:
            file = dataset(client, large)
            tree = dataset(
                client, tar_gz({"a/b": b"inside", "large": large[:3_000_000]}), "d.tar.gz"
            )
            empty = dataset(client, tar_gz({}), "d.tar.gz")
        whole = httpx.get(
            blob(first, tree), headers=authorization(first), trust_env=False, timeout=60
        )
    finally:
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second.start(*database)
    try:
        assert s3.count("GetObject", file) == 0
        part = httpx.get(
            blob(second, file),
            headers=authorization(second) | plain | {"Range": "bytes=30000000-30000009"},
            trust_env=False,
            timeout=60,
        )
        assert (part.status_code, part.content) == (206, large[30_000_000:30_000_010])
        with second.client() as client:
            assert read(client, file) == large
            assert read(client, tree, "a/b") == b"inside"
            assert [each.name for each in client.contents_info(tree, depth=1).contents] == [
                *("a", "large")
            ]
            assert client.contents_info(empty, depth=1).contents == ()
        # What was begun at the one goes on at the other: the archive is the same to the byte.
        cut = len(whole.content) // 2
        rest = httpx.get(
            blob(second, tree),
            params={"skip": str(cut)},
            headers=authorization(second) | {"If-Range": whole.headers["ETag"]},
            trust_env=False,
            timeout=60,
        )
        assert rest.headers["Bundles-Skipped"] == str(cut)
        assert whole.content[:cut] + rest.content == whole.content
    finally:
        assert second.stop() == 0


def test_what_no_bundle_has_goes_at_the_next_start_and_what_is_anothers_stays(
    server: S3Server, client: Client
) -> None:
    s3, prefix = server.s3, server.prefix
    kept = dataset(client, b"kept")
    tree = dataset(client, tar_gz({"a": b"a"}), "d.tar.gz")
    client.delete([tree])
    eventually(lambda: not any(tree in key for key in s3.keys(prefix)), "its object gone")
    server.stop()
    litter = "ab/0x" + "ab" * 16 + "-0011"
    foreign = ("notes.txt", "ab/0xab/readme", "logs/2026/x.gz")
    for key in (f"{litter}.tar.gz", f"{litter}-{'0' * 64}", *foreign):
        s3.client().put_object(Bucket=BUCKET, Key=prefix + key, Body=b"x")
    beside = f"{prefix.rstrip('/')}-2/{litter}.tar.gz"
    s3.client().put_object(Bucket=BUCKET, Key=beside, Body=b"x")
    for key in (f"{prefix}{litter}.tar.gz", f"{prefix}{foreign[0]}", beside):
        s3.client().create_multipart_upload(Bucket=BUCKET, Key=key)
    s3.page_size = 2
    try:
        server.start()
        server.stop()  # which waits for what goes on in the background
    finally:
        s3.page_size = 1000
    keys = s3.keys(prefix)
    assert [key for key in keys if key not in foreign] == [
        key for key in keys if key[3:].startswith(kept)
    ]
    assert len(keys) == 1 + len(foreign)
    assert s3.keys(beside) == [""]
    assert s3.uploads(prefix) == [prefix + foreign[0]]
    assert s3.uploads(beside) == [beside]
    server.start()
    with server.client() as again:
        assert read(again, kept) == b"kept"


def test_the_contents_of_another_database_are_not_touched(
    server: S3Server, client: Client, tmp_path: Path
) -> None:
    uuid = dataset(client, b"mine")
    before = server.s3.keys(server.prefix)
    server.stop()
    # No database was named, say, where one should have been.
    said = server.command(
        *("serve", "--port", "0", "--contents", f"s3://{BUCKET}/{server.prefix}"),
        *("--database", f"sqlite:///{tmp_path / 'other.sqlite'}"),
    )
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert "another database" in said.stderr
    assert server.s3.keys(server.prefix) == before
    used = f"{server.prefix}used/"
    server.s3.client().put_object(Bucket=BUCKET, Key=f"{used}x", Body=b"x")
    said = server.command("serve", "--port", "0", "--contents", f"s3://{BUCKET}/{used}")
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert "no server of bundles has put there" in said.stderr
    server.start()
    with server.client() as again:
        assert read(again, uuid) == b"mine"


def test_a_given_directory_is_one_databases_too(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "lost+found").mkdir(parents=True)  # a file system of its own
    server = Server(tmp_path)
    server.start("--contents", str(place))
    with server.client() as client:
        uuid = dataset(client, b"content")
    server.stop()
    server.start("--contents", str(place))
    with server.client() as client:
        assert read(client, uuid) == b"content"
    assert not (server.home.path / "contents").exists()
    server.stop()
    full = tmp_path / "full"
    (full / "incoming").mkdir(parents=True)
    (full / "incoming" / "post").write_text("mine")
    for directory, reason in ((place, "another database"), (full, "no server of bundles")):
        said = server.command(
            *("serve", "--port", "0", "--contents", str(directory)),
            *("--database", f"sqlite:///{tmp_path / 'other.sqlite'}"),
        )
        assert (said.returncode, said.stderr.count("\n")) == (1, 1)
        assert reason in said.stderr
    assert (full / "incoming" / "post").read_text() == "mine"
    assert len(list(place.glob("??/*"))) == 1


def test_a_worker_that_would_share_the_file_system_is_told_that_it_cannot(
    server: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "worker").mkdir()
    worker = WorkerProcess(tmp_path / "worker", server.url)
    worker.env = dict(server.env)
    with contextlib.closing(worker):
        worker.start("--shared-file-system")
        eventually(lambda: "without --shared-file-system" in worker.log, "its complaint")
    assert server.running


# While S3 fails


@pytest.mark.parametrize(
    ("contents", "code", "said"),
    [
        ("s3://missing-bucket/x", 1, "NoSuchBucket"),
        ("s3://Bucket/x", 2, "write s3://BUCKET/PREFIX"),
    ],
)
def test_a_place_that_cannot_be_is_said_in_one_line(
    contents: str, code: int, said: str, s3: FakeS3, tmp_path: Path
) -> None:
    server = S3Server(tmp_path, s3)
    done = server.command("serve", "--port", "0", "--contents", contents)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize("trouble", ["away", "denied", "listing"])
def test_a_server_does_not_start_without_its_store(
    trouble: str, server: S3Server, client: Client
) -> None:
    s3 = server.s3
    dataset(client, b"kept")
    before = s3.keys(server.prefix)
    server.stop()
    start = ("serve", "--port", "0", "--contents", f"s3://{BUCKET}/{server.prefix}")
    if trouble == "away":
        s3.close()
        try:
            done = server.command(*start)
        finally:
            s3.open()
    elif trouble == "denied":
        with s3.fault("GetObject", 403, "AccessDenied"):
            done = server.command(*start)
        assert "AccessDenied" in done.stderr
    else:
        # A list without its second page is none, and nothing may be swept by it.
        s3.page_size = 1
        try:
            with s3.fault(
                "ListObjectsV2", 403, "AccessDenied", lambda p: "continuation-token" in p
            ):
                done = server.command(*start)
        finally:
            s3.page_size = 1000
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("bundles: the store of contents, s3://")
    assert "Traceback" not in done.stderr
    assert s3.keys(server.prefix) == before


def test_while_s3_fails_uploads_are_refused_for_now_and_nothing_is_half_kept(
    server: S3Server, client: Client
) -> None:
    s3 = server.s3
    old = dataset(client, b"old")
    documents = [{"bundle_type": "dataset"}] * 3
    new = [bundle.uuid for bundle in client.create(documents, wait_for_upload=True)]
    large, tree = os.urandom(LARGE_BYTES), tar_gz({"a": b"a"})
    faults = (
        ("UploadPart", large, "x"),
        ("CompleteMultipartUpload", large, "x"),
        ("PutObject", tree, "d.tar.gz"),
    )
    for uuid, (operation, content, filename) in zip(new, faults, strict=True):
        with s3.fault(operation, 403, "AccessDenied"):
            with pytest.raises(ServerFault, match="AccessDenied"):
                client.upload(uuid, content, filename=filename, finalize=True)
            assert client.bundle(uuid).state == "uploading"
            with pytest.raises(NotFound):
                client.contents_info(uuid)
            assert read(client, old) == b"old"
    assert [key for key in s3.keys(server.prefix) if old not in key] == []
    assert s3.uploads(server.prefix) == []
    assert list((server.home.path / "contents-cache" / "incoming").iterdir()) == []
    assert "so it was asked" in server.log.read_text()  # S3's own words
    with s3.fault("PutObject", 403, "AccessDenied"):
        reply = httpx.put(
            blob(server, new[0]),
            params={"filename": "x"},
            content=b"x",
            headers=authorization(server),
            trust_env=False,
            timeout=60,
        )
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")
        assert "so it was asked" not in reply.text
    for uuid, (operation, content, filename) in zip(new, faults, strict=True):
        # S3 has it all, and its last reply is lost: then it is all there.
        is_last = operation != "UploadPart"
        with s3.fault(operation, REPLY_LOST) if is_last else contextlib.nullcontext():
            client.upload(uuid, content, filename=filename, finalize=True)
    assert read(client, new[0]) == read(client, new[1]) == large
    assert read(client, new[2], "a") == b"a"


def test_results_wait_until_s3_is_there_again(
    server: S3Server, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "worker").mkdir()
    worker = WorkerProcess(tmp_path / "worker", server.url)
    worker.env = dict(server.env)
    data = dataset(client, b"from s3")
    server.stop()
    server.start()  # with nothing in its cache
    with contextlib.closing(worker):
        with server.s3.fault("", CUT) as away:
            uuid = server.output("run", f"d:{data}", "cat d; echo more > out").strip()
            worker.start("--checkin-frequency-seconds", "1")
            assert away.seen.wait(60)
        with server.s3.fault("PutObject", 500, "InternalError") as failing:
            assert failing.seen.wait(60)
        assert server.command("wait", uuid).returncode == 0
    assert server.output("cat", f"{uuid}/stdout") == "from s3"
    assert server.output("cat", f"{uuid}/out") == "more\n"
    assert len([key for key in server.s3.keys(server.prefix) if uuid in key]) == 1


def test_what_is_not_at_hand_is_not_to_be_had_while_s3_is_away(
    server: S3Server, client: Client
) -> None:
    healthz = f"{server.url}/healthz"
    uuid = dataset(client, b"content")
    eventually(lambda: httpx.get(healthz, trust_env=False, timeout=60).text == "ok", "good health")
    server.stop()
    server.start()
    server.s3.close()
    try:
        with server.client() as again, pytest.raises(ServerFault, match="store of contents"):
            read(again, uuid)

        def complaint() -> str:
            reply = httpx.get(healthz, trust_env=False, timeout=60)
            return reply.text if reply.status_code == 503 else ""

        assert "store" in eventually(complaint, "bad health")
    finally:
        server.s3.open()
    with server.client() as again:
        assert read(again, uuid) == b"content"
    eventually(lambda: httpx.get(healthz, trust_env=False, timeout=60).text == "ok", "good health")
    server.s3.close()
    try:
        with server.client() as again:
            assert read(again, uuid) == b"content"  # which is at hand now
    finally:
        server.s3.open()


def test_an_object_that_is_missing_or_damaged_is_said_and_logged(
    server: S3Server, client: Client
) -> None:
    s3, prefix = server.s3, server.prefix
    missing, file = dataset(client, b"content"), dataset(client, b"content")
    tree = dataset(client, tar_gz({"a": b"a" * 1000}), "d.tar.gz")
    keys = {uuid: next(k for k in s3.keys(prefix) if uuid in k) for uuid in (missing, file, tree)}
    server.stop()
    server.start()
    s3.client().delete_object(Bucket=BUCKET, Key=prefix + keys[missing])
    s3.client().put_object(Bucket=BUCKET, Key=prefix + keys[file], Body=b"c0ntent")
    found = s3.client().get_object(Bucket=BUCKET, Key=prefix + keys[tree])["Body"].read()
    s3.client().put_object(Bucket=BUCKET, Key=prefix + keys[tree], Body=found[:-6])
    with server.client() as again:
        with pytest.raises(NotFound, match="missing"):
            read(again, missing)
        for uuid in (file, tree):
            with pytest.raises(ServerFault, match="damaged"):
                read(again, uuid)
        with (
            s3.fault("HeadObject", 404, ""),
            s3.fault("GetObject", 404, "NoSuchBucket"),
            pytest.raises(ServerFault, match="NoSuchBucket"),
        ):
            read(again, file)
    for key in keys.values():
        assert key in server.log.read_text()
    assert list((server.home.path / "contents-cache" / "kept").iterdir()) == []


def test_what_many_want_is_fetched_once(server: S3Server, client: Client) -> None:
    content = os.urandom(200_000)
    uuid = dataset(client, content)
    server.stop()
    server.start()
    with server.client() as again:
        with server.s3.fault("GetObject", HANG, when=lambda _: True) as slow:
            readers = [InBackground(lambda: read(again, uuid)) for _ in range(12)]
            assert slow.seen.wait(60)
            # They wait for it, and keep nobody else from working.
            other = dataset(again, b"other")
            assert read(again, other) == b"other"
        before = server.s3.count("GetObject", uuid)
        assert [reader.result() for reader in readers] == [content] * 12
    # The one that hung was cut off, and came again.
    assert server.s3.count("GetObject", uuid) - before <= 1


def test_a_server_that_is_killed_during_an_upload_leaves_no_part_of_it(
    server: S3Server, client: Client
) -> None:
    content = os.urandom(LARGE_BYTES)
    uuid = client.create([{"bundle_type": "dataset"}], wait_for_upload=True)[0].uuid

    def upload() -> None:
        with contextlib.suppress(Exception):
            client.upload(uuid, content, filename="x", finalize=True)

    with server.s3.fault("CompleteMultipartUpload", HANG) as held:
        sender = InBackground(upload)
        assert held.seen.wait(60)
        server.stop(signal.SIGKILL)
    sender.result()
    assert len(server.s3.uploads(server.prefix)) == 1
    server.start()
    assert server.s3.uploads(server.prefix) == []
    with server.client() as again:
        again.upload(uuid, content, filename="x", finalize=True)
        assert read(again, uuid) == content
    assert len(server.s3.keys(server.prefix)) == 1


def test_a_server_ends_though_s3_does_not_answer(server: S3Server, client: Client) -> None:
    uuid = client.create([{"bundle_type": "dataset"}], wait_for_upload=True)[0].uuid
    content = os.urandom(LARGE_BYTES)

    def upload() -> None:
        with contextlib.suppress(Exception):
            client.upload(uuid, content, filename="x", finalize=True)

    with server.s3.fault("UploadPart", HANG) as held:
        sender = InBackground(upload)
        assert held.seen.wait(60)
        assert server.stop(patience_seconds=50) == 0  # while the fault has 60
    sender.result()
    # Three parts, which nobody asked for four times each.
    assert server.s3.count("UploadPart", uuid) <= 6
    server.start()
    assert server.s3.uploads(server.prefix) == []
    with server.client() as again:
        assert again.bundle(uuid).state == "uploading"


def test_the_cache_is_bounded(s3: FakeS3, tmp_path: Path) -> None:
    server = S3Server(tmp_path, s3)
    kept = server.home.path / "contents-cache" / "kept"
    server.start("--contents-cache", "2m")
    try:
        with server.client() as client:
            contents = [os.urandom(900_000) for _ in range(5)]
            uuids = [dataset(client, content) for content in contents]
            for uuid, content in zip(uuids, contents, strict=True):
                assert (
                    hashlib.sha256(read(client, uuid)).digest() == hashlib.sha256(content).digest()
                )
            eventually(lambda: len(list(kept.iterdir())) <= 2, "an end of the cache")
            larger = os.urandom(5_000_000)
            uuid = dataset(client, larger)
            assert read(client, uuid) == larger
            assert read(client, uuids[0]) == contents[0]
            eventually(lambda: len(list(kept.iterdir())) == 1, "an end of the cache")
    finally:
        assert server.stop() == 0


def test_what_is_at_hand_is_served_though_everybody_else_waits_for_s3(
    server: S3Server, client: Client
) -> None:
    here = dataset(client, tar_gz({"a": b"here"}), "d.tar.gz")
    waiting = client.create([{"bundle_type": "dataset"}] * 12, wait_for_upload=True)

    def upload(uuid: str) -> None:
        client.upload(uuid, b"x", filename="x", finalize=True)

    with server.s3.fault("PutObject", HANG) as held:
        senders = [InBackground(lambda uuid=bundle.uuid: upload(uuid)) for bundle in waiting]
        assert held.seen.wait(60)
        eventually(lambda: server.s3.count("PutObject", server.prefix) >= 8, "all that may ask")
        assert read(client, here, "a") == b"here"
        assert client.contents_info(here, depth=1).contents[0].name == "a"
    for sender in senders:
        sender.result()
    assert {client.bundle(bundle.uuid).state for bundle in waiting} == {"ready"}


@needs_root
def test_a_disk_full_of_copies_makes_room_for_what_comes(s3: FakeS3, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 48 * 1024**2) as disk:
        server = S3Server(tmp_path, s3)
        server.home = Home(disk / "home")
        server.env["WORKER_MANAGER_HOME"] = str(server.home.path)
        with serving(server), server.client() as client:
            documents = [{"bundle_type": "dataset"}] * 2
            first, second = client.create(documents, wait_for_upload=True)
            contents = [os.urandom(15 * 1024**2) for _ in range(2)]
            client.upload(first.uuid, contents[0], filename="x", finalize=True)
            # Not 507, after which a worker would not come again.
            with pytest.raises(ServerFault, match="more room now") as refusal:
                client.upload(second.uuid, contents[1] * 2, filename="x", finalize=True)
            assert not isinstance(refusal.value, DiskFull)
            client.upload(second.uuid, contents[1], filename="x", finalize=True)
            assert read(client, second.uuid) == contents[1]
            assert read(client, first.uuid) == contents[0]
            third = client.create(documents[:1], wait_for_upload=True)[0]
            for kind, sentence in ((ServerFault, "more room now"), (DiskFull, "full")):
                with pytest.raises(kind, match=sentence):
                    client.upload(third.uuid, bytes(100 * 1024**2), filename="x")
