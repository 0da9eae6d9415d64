"""What is taken away while a bundle is on its way: its image, registry, disk or server."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

import pytest
from containers import Containers, as_worker_of, eventually, touch
from docker_engine import IMAGE, DockerEngine, Registry
from leftovers import nothing_left
from scripted_server import Content, Fault, ScriptedServer
from worker_process import WorkerProcess

from bundles.model import new_uuid

pytestmark = [pytest.mark.engine("docker"), pytest.mark.engine("docker-registry")]


def publish(engine: DockerEngine, registry: Registry) -> str:
    """The base in the registry, and not in the engine."""
    reference = f"{registry.at}/base:1"
    engine.command("tag", IMAGE, reference)
    engine.command("push", reference)
    engine.command("rmi", reference)
    return reference


def test_a_worker_that_is_killed_while_it_pulls_pulls_again(
    stand: Containers, registry: Registry
) -> None:
    image = publish(stand.engine, registry)
    registry.halt()
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", registry.port))
        silent.listen()
        stand.start()
        run = stand.run("echo ran", image=image)
        stand.until(run, "preparing")
        eventually(
            lambda: image in str(stand.client.bundle(run).metadata.get("run_status")),
            "its status names the image",
        )
        stand.worker().kill()
    registry.start()
    stand.start()
    bundle = stand.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert stand.read(run) == "ran\n"
    stand.leave()


def test_an_image_that_is_removed_while_its_run_waits_is_pulled_again(
    tmp_path: Path, own_engine: DockerEngine, registry: Registry
) -> None:
    image = publish(own_engine, registry)
    file = new_uuid()
    with ScriptedServer() as script:
        script.contents[file, ""] = Content(b"F")
        fault = script.fault("download", Fault(hold=threading.Event()))
        worker = as_worker_of(own_engine, WorkerProcess(tmp_path, script.url))
        try:
            worker.start("--runtime", "docker")
            run = script.run("cat f", dependencies=[("f", file, "")], docker_image=image)
            script.until(fault.met.is_set)
            here = ("images", "--quiet", image)
            eventually(lambda: own_engine.command(*here).strip(), "it is pulled")
            eventually(
                lambda: "Downloading dependency" in str(script.runs[run].get("run_status")),
                "the dependency is all that it waits for",
            )
            own_engine.command("rmi", "--force", own_engine.command(*here).strip())
            own_engine.import_base()
            assert not own_engine.command(*here).strip()
            assert fault.hold is not None
            fault.hold.set()
            assert script.until_over(run)["exitcode"] == 0
            assert script.files(run)["stdout"] == b"F"
            assert worker.stop() == 0, worker.log
            nothing_left([worker], engine=own_engine)
        finally:
            worker.close()


def test_a_full_disk_fails_the_run_that_filled_it_and_no_other(
    containers: Containers, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], check=True)
    try:
        worker = containers.worker()
        worker.work_directory = containers.work = small / "work"
        containers.start("--cpus", "2")
        neighbour = containers.run(": > here; while [ ! -e go ]; do sleep 0.05; done")
        containers.until(neighbour, "running")
        eventually((containers.place(neighbour) / "here").exists, "the command runs")
        greedy = containers.run("head -c 100M /dev/zero > big; exit 9")
        bundle = containers.end(greedy)
        assert bundle.state == "failed"
        touch(containers.place(neighbour) / "go")
        assert containers.end(neighbour).state == "ready"
        after = containers.run("head -c 1M /dev/zero > fits && echo fine")
        assert containers.end(after).state == "ready"
        assert containers.read(after) == "fine\n"
        containers.leave()
    finally:
        containers.close()
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_server_that_is_killed_while_results_come_gets_them_again(
    containers: Containers, tmp_path: Path
) -> None:
    containers.start()
    run = containers.run("head -c 300M /dev/zero > big; echo kept")
    containers.until(run, "running")

    def is_uploading() -> bool:
        records = containers.work.glob(f"workers/*/runs/{run}*/run.json")
        return any('"stage":"UPLOADING_RESULTS"' in record.read_text() for record in records)

    eventually(is_uploading, "the results are on their way")
    containers.server.stop(9)
    containers.server.start()
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata
    assert containers.read(run) == "kept\n"
    assert containers.client.contents_info(run, "big").size_bytes == 300 << 20
    containers.leave()
