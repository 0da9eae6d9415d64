"""The images of a worker: from a registry of the test's own, into an engine of the test's own."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from containers import Containers, eventually
from docker_engine import IMAGE, Registry
from forwarder import before_engine, before_registry

pytestmark = [pytest.mark.engine("docker"), pytest.mark.engine("docker-registry")]

WAIT = ": > here; while [ ! -e go ]; do sleep 0.05; done"


def publish(stand: Containers, registry: Registry, name: str, **files: bytes) -> str:
    """Push the base with these files in it, and forget it here; its reference."""
    reference = f"{registry.at}/{name}"
    engine = stand.engine
    engine.command("create", "--name", "maker", "--network", "none", IMAGE, "/bin/sh")
    for number, (file, content) in enumerate(files.items()):
        path = stand.directory / f"layer-{number}"
        path.write_bytes(content)
        engine.command("cp", str(path), f"maker:/{file}")
    engine.command("commit", "maker", reference)
    engine.command("rm", "maker")
    engine.command("push", reference)
    engine.command("rmi", reference)
    return reference


def is_here(stand: Containers, reference: str) -> bool:
    return bool(stand.engine.command("images", "--quiet", reference).strip())


def test_an_image_is_pulled_from_a_registry_with_a_port_and_its_digest_recorded(
    stand: Containers, registry: Registry
) -> None:
    image = publish(stand, registry, "team/tool:1.2", mark=b"one")
    stand.start("--cpus", "4")
    runs = [stand.run("echo $(< /mark)", image=image) for _ in range(4)]
    for run in runs:
        bundle = stand.end(run)
        assert bundle.state == "ready", bundle.metadata["failure_message"]
        assert stand.read(run) == "one\n"
        digest = bundle.metadata["docker_image"]
        assert digest.startswith(f"{registry.at}/team/tool@sha256:")
    by_digest = stand.run("echo $(< /mark)", image=digest)
    registry.halt()
    assert stand.end(by_digest).state == "ready"
    stand.leave()


def test_many_runs_wait_for_one_pull_and_are_told_how_far_it_is(
    stand: Containers, registry: Registry
) -> None:
    publish(stand, registry, "large:1", mark=os.urandom(9 << 20))
    path = stand.engine.directory / "forwarder.sock"
    slow, at = before_registry(registry.port, answer_bytes=4 << 20)
    with closing(before_engine(path, stand.engine.socket)) as engine, closing(slow):
        stand.worker().env["DOCKER_HOST"] = f"unix://{path}"
        stand.start("--cpus", "4", "--checkin-frequency-seconds", "0.2")
        image = f"{at}/large:1"
        runs = [stand.run("wc -c < /mark", image=image) for _ in range(4)]
        progress = re.compile(f"Pulling image {image}: ([1-9][0-9.]*)([km]) of 9(\\.[0-9]+)?m")
        for run in runs:
            eventually(
                lambda run=run: progress.fullmatch(
                    str(stand.client.bundle(run).metadata.get("run_status"))
                ),
                "its status says how much is there, and of how much",
            )
        slow.release()
        for run in runs:
            bundle = stand.end(run)
            assert bundle.state == "ready", bundle.metadata["failure_message"]
            assert stand.read(run) == f"{9 << 20}\n"
        pulls = [asked for asked in engine.requests if "/images/create" in asked]
        assert len(pulls) == 1
        stand.leave()


def test_a_pull_that_ends_with_its_engine_begins_anew_when_that_is_back(
    stand: Containers, registry: Registry
) -> None:
    publish(stand, registry, "large:1", mark=os.urandom(9 << 20))
    slow, at = before_registry(registry.port, answer_bytes=4 << 20)
    with closing(slow):
        stand.start("--checkin-frequency-seconds", "0.2")
        run = stand.run("wc -c < /mark", image=f"{at}/large:1")
        eventually(
            lambda: " of 9" in str(stand.client.bundle(run).metadata.get("run_status")),
            "some of it is here",
        )
        stand.engine.kill()
        eventually(lambda: "waits for the engine" in stand.logs(), "the pull has ended")
        slow.release()
        stand.engine.start()
        bundle = stand.end(run)
        assert bundle.state == "ready", bundle.metadata["failure_message"]
        stand.leave()


def test_a_tag_that_moved_is_pulled_anew_and_an_absent_registry_does_not_matter(
    stand: Containers, registry: Registry
) -> None:
    image = publish(stand, registry, "tool:latest", mark=b"old")
    stand.start()
    first = stand.run("echo $(< /mark)", image=image)
    assert stand.end(first).state == "ready"
    stand.settle()
    assert stand.worker().stop() == 0
    older = stand.engine.command("images", "--quiet", image).strip()
    stand.engine.command("tag", older, "localhost/kept:1")
    publish(stand, registry, "tool:latest", mark=b"new")
    stand.engine.command("tag", "localhost/kept:1", image)
    stand.start()
    second = stand.run("echo $(< /mark)", image=image)
    assert stand.end(second).state == "ready"
    assert stand.read(second) == "new\n"
    stand.settle()
    assert stand.worker().stop() == 0
    registry.halt()
    stand.start()
    third = stand.run("echo $(< /mark)", image=image)
    assert stand.end(third).state == "ready"
    assert stand.read(third) == "new\n"
    stand.leave()


def test_an_image_that_is_removed_after_it_was_pulled_is_pulled_again(
    stand: Containers, registry: Registry
) -> None:
    image = publish(stand, registry, "tool:1", mark=b"one")
    stand.start("--cpus", "1", "--max-image-cache-size", "10g")
    first = stand.run("true", image=image)
    assert stand.end(first).state == "ready"
    eventually(lambda: stand.engine.command("ps", "-aq") == "", "its container is removed")
    stand.engine.command("rmi", "--force", stand.engine.command("images", "-q", image).strip())
    assert not is_here(stand, image)
    second = stand.run("echo $(< /mark)", image=image)
    bundle = stand.end(second)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    assert stand.read(second) == "one\n"
    stand.leave()


def test_a_missing_image_of_a_registry_is_named(stand: Containers, registry: Registry) -> None:
    stand.start()
    run = stand.run("true", image=f"{registry.at}/no/such:3")
    message = stand.end(run).metadata["failure_message"]
    assert message.startswith(f"There is no image {registry.at}/no/such:3")
    stand.leave()


def test_an_image_that_is_too_large_is_refused_before_it_is_pulled(
    stand: Containers, registry: Registry
) -> None:
    small = publish(stand, registry, "small:1", mark=b"small")
    # Random, so that it is as large when it is transferred.
    large = publish(stand, registry, "large:1", mark=os.urandom(9 << 20))
    stand.start("--max-image-size", "8m")
    refused = stand.run("true", image=large)
    message = stand.end(refused).metadata["failure_message"]
    assert message.startswith(f"The size of image {large}, ")
    assert message.endswith("exceeds the maximum image size of this worker, 8m")
    assert not is_here(stand, large)
    taken = stand.run("echo $(< /mark)", image=small)
    assert stand.end(taken).state == "ready"
    stand.leave()


def test_the_least_recently_used_image_makes_room_but_none_in_use_or_of_others(
    stand: Containers, registry: Registry
) -> None:
    names = [publish(stand, registry, f"tool:{n}", mark=bytes([n]) * 100) for n in range(4)]
    theirs, *images = names
    stand.engine.command("pull", theirs)
    again = f"{registry.at}/theirs:again"
    stand.engine.command("tag", theirs, again)
    stand.engine.command("push", again)
    stand.engine.command("rmi", again)
    stand.start("--cpus", "4", "--max-image-cache-size", "1m")
    using = stand.run(WAIT, image=images[0])
    stand.until(using, "running")
    eventually((stand.place(using) / "here").exists, "the command runs")
    for image in (images[1], images[2], theirs, again):
        run = stand.run("true", image=image)
        assert stand.end(run).state == "ready"
    eventually(lambda: not is_here(stand, images[1]), "the first unused one is removed")
    assert is_here(stand, images[0])
    assert is_here(stand, theirs)
    assert is_here(stand, IMAGE)
    (stand.place(using) / "go").write_text("")
    assert stand.end(using).state == "ready"
    eventually(lambda: not is_here(stand, images[0]), "what is not in use any more is removed")
    stand.leave()
    assert is_here(stand, theirs)


PASSWORD = "pass-word-of-somebody"


@pytest.fixture
def private() -> Iterator[Registry]:
    """A registry that wants to know who asks."""
    made = Registry(PASSWORD)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def log_in(directory: Path, registry: Registry, password: str = PASSWORD) -> None:
    """What `docker login` writes into its configuration."""
    pair = base64.b64encode(f"{registry.USER}:{password}".encode()).decode()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {registry.at: {"auth": pair}}}))


def test_a_private_registry_gives_its_images_to_who_is_logged_in_there(
    stand: Containers,
    private: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_in(tmp_path / "of-the-test", private)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "of-the-test"))
    image = publish(stand, private, "secret/tool:1", mark=b"one")
    large = publish(stand, private, "secret/large:1", mark=os.urandom(9 << 20))
    helped = publish(stand, private, "secret/helped:1", mark=b"two")
    worker = stand.worker()
    configuration = Path(worker.env["DOCKER_CONFIG"])
    log_in(configuration, private, "which-is-not-valid-any-more")
    stand.start("--max-image-size", "8m")
    refused = stand.end(stand.run("true", image=image)).metadata["failure_message"]
    assert refused.startswith(f"This worker may not pull image {image}: ")
    assert "\n" not in refused
    (configuration / "config.json").write_text('{"auths": {"half": 1}}')
    assert stand.end(stand.run("true")).state == "ready"  # it needs no registry
    log_in(configuration, private)  # while the worker is at work
    run = stand.run("echo $(< /mark)", image=image)
    bundle = stand.end(run)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    assert bundle.metadata["docker_image"].startswith(f"{private.at}/secret/tool@sha256:")
    message = stand.end(stand.run("true", image=large)).metadata["failure_message"]
    assert message.startswith(f"The size of image {large}, ")
    # And by a helper, a program that knows the password.
    stand.settle()
    assert worker.stop() == 0
    programs = tmp_path / "programs"
    programs.mkdir()
    answer = json.dumps({"ServerURL": private.at, "Username": private.USER, "Secret": PASSWORD})
    program = programs / "docker-credential-ours"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = get ] && echo '{answer}'\n")
    program.chmod(0o755)
    (configuration / "config.json").write_text(json.dumps({"credHelpers": {private.at: "ours"}}))
    worker.env["PATH"] = f"{programs}:{worker.env['PATH']}"
    stand.start()
    run = stand.run("echo $(< /mark)", image=helped)
    bundle = stand.end(run)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    assert stand.read(run) == "two\n"
    assert PASSWORD not in stand.logs()
    (configuration / "config.json").write_text(json.dumps({"credsStore": "missing"}))
    stand.engine.command("rmi", helped)
    assert stand.end(stand.run("true", image=f"{private.at}/no:1")).state == "failed"
    stand.leave()


def test_without_its_registry_an_image_that_is_not_here_is_one_clear_sentence(
    stand: Containers, registry: Registry
) -> None:
    image = f"{registry.at}/tool:1"
    registry.halt()
    stand.start()
    message = stand.end(stand.run("true", image=image)).metadata["failure_message"]
    assert message.startswith(f"Cannot pull image {image}: ")
    assert "connection refused" in message
    stand.leave()


def test_a_run_that_is_killed_while_its_image_is_pulled_does_not_wait_for_it(
    stand: Containers,
) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        held: list[socket.socket] = []
        taking = threading.Thread(target=lambda: held.append(silent.accept()[0]), daemon=True)
        taking.start()
        stand.start()
        image = f"127.0.0.1:{silent.getsockname()[1]}/tool:1"
        run = stand.run("true", image=image)
        stand.until(run, "preparing")
        eventually(
            lambda: image in str(stand.client.bundle(run).metadata.get("run_status")),
            "its status names the image",
        )
        stand.client.act([{"type": "kill", "uuid": run}])
        assert stand.end(run).state == "killed"
        for connection in held:
            connection.close()
    stand.leave()
