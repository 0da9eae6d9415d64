"""Bundles in containers of real engines, as their users see them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from containers import Containers, eventually, touch
from docker_engine import ADDRESSES, IMAGE, DockerEngine
from forwarder import before_engine

from bundles.exits import WorkerExit

pytestmark = pytest.mark.engine("docker")


on_both = pytest.mark.parametrize(
    "engine",
    ["docker_engine", pytest.param("podman_engine", marks=pytest.mark.engine("podman"))],
    ids=["docker", "podman"],
    indirect=True,
)

WAIT = "touch_here() { : > here; }; touch_here; while [ ! -e go ]; do sleep 0.05; done"


def go(containers: Containers, uuid: str) -> None:
    touch(containers.place(uuid) / "go")


def until_here(containers: Containers, uuid: str) -> None:
    containers.until(uuid, "running")
    eventually((containers.place(uuid) / "here").exists, "the command runs")


def upload(containers: Containers, name: str, content: str) -> str:
    path = containers.directory / name
    path.write_text(content)
    return containers.server.output("upload", str(path)).strip()


@on_both
def test_a_run_reads_its_dependency_and_its_results_come_back(
    containers: Containers, tmp_path: Path
) -> None:
    data = upload(containers, "data", "of the parent\n")
    containers.start()
    run = containers.run(
        "cat in; cat deep/er/in >&2; cat a:b > /dev/null && echo written > out; "
        "mkdir sub; echo x > sub/file; pwd; env",
        dependencies=[("in", data), ("deep/er/in", data), ("a:b", data)],
    )
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    said = containers.read(run).splitlines()
    assert said[:2] == ["of the parent", f"/{run}"]
    assert {f"HOME=/{run}", "CODALAB=true"} <= set(said)
    assert containers.read(run, "stderr") == "of the parent\n"
    assert containers.read(run, "out") == "written\n"
    files = containers.files(run, tmp_path / "back")
    assert sorted(path.name for path in files.iterdir()) == ["out", "stderr", "stdout", "sub"]
    child = containers.run("cat parent/sub/file", dependencies=[("parent", run)])
    assert containers.end(child).state == "ready"
    assert containers.read(child) == "x\n"
    containers.leave()


def test_contents_can_be_mounted_at_the_top_and_are_read_only(containers: Containers) -> None:
    containers.start()
    parent = containers.run("echo a > a; mkdir d; echo b > d/b")
    assert containers.end(parent).state == "ready"
    child = containers.run(
        "cat a d/b; (echo no > a) 2>&- || echo kept; (echo no > d/c) 2>&- || echo kept",
        dependencies=[(".", parent)],
    )
    bundle = containers.end(child)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    assert containers.read(child) == "a\nb\nkept\nkept\n"
    containers.leave()


@on_both
def test_the_exit_code_and_a_signal_are_reported(containers: Containers) -> None:
    containers.start()
    failing = containers.run("exit 7")
    missing = containers.run("no-such-program")
    crashing = containers.run("kill -SEGV $$")
    assert containers.end(failing).metadata["exitcode"] == 7
    assert containers.end(missing).metadata["exitcode"] == 127
    assert "no-such-program" in containers.read(missing, "stderr")
    bundle = containers.end(crashing)
    assert bundle.metadata["exitcode"] == 139
    assert "SIGSEGV" in bundle.metadata["failure_message"]
    containers.leave()


def test_a_run_is_confined(containers: Containers) -> None:
    containers.start()
    run = containers.run(WAIT, request_cpus=1, request_memory="48m")
    until_here(containers, run)
    found = containers.inspect(run)
    host = found["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 48 * 1024**2
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Init"] is True
    assert host["PidsLimit"] > 0
    assert host["ShmSize"] == 1024**3
    assert host["LogConfig"]["Type"] == "none"
    assert host["Privileged"] is False
    assert len(host["CpusetCpus"].split(",")) == 1
    status = containers.place(run).stat()
    assert found["Config"]["User"] == f"{status.st_uid}:{status.st_gid}"
    assert found["Config"]["Labels"]["worker-manager.worker"] == "w1"
    go(containers, run)
    assert containers.end(run).state == "ready"
    containers.leave()


@on_both
def test_a_killed_run_is_killed_though_it_ignores_the_request(containers: Containers) -> None:
    containers.start()
    run = containers.run("trap '' TERM INT; " + WAIT)
    until_here(containers, run)
    containers.client.act([{"type": "kill", "uuid": run}])
    bundle = containers.end(run)
    assert bundle.state == "killed"
    assert "Kill requested" in bundle.metadata["failure_message"]
    containers.leave()


def test_time_limit(containers: Containers) -> None:
    containers.start()
    run = containers.run("echo begun; sleep 1000", request_time="1s")
    bundle = containers.end(run)
    assert bundle.state == "failed"
    assert bundle.metadata["failure_message"].startswith("Time limit exceeded")
    assert containers.read(run) == "begun\n"
    containers.leave()


def test_disk_limit(containers: Containers) -> None:
    containers.start()
    run = containers.run("head -c 20000000 /dev/zero > big; sleep 1000", request_disk="1m")
    bundle = containers.end(run)
    assert bundle.state == "failed"
    assert bundle.metadata["failure_message"].startswith("Disk limit 1mb exceeded")
    containers.leave()


def test_a_run_that_wants_too_much_memory_is_told_so(containers: Containers) -> None:
    containers.start()
    run = containers.run(
        "x=$(head -c 100000000 /dev/zero | while read -r -N 65536 c; do echo -n 0; done); "
        "y=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28; "
        "do y=$y$y; done; echo ${#y}",
        request_memory="32m",
    )
    bundle = containers.end(run)
    assert bundle.state == "failed"
    assert bundle.metadata["failure_message"].startswith("Memory limit 32m exceeded")
    containers.leave()


def test_what_a_running_run_uses_is_reported(containers: Containers) -> None:
    containers.start("--checkin-frequency-seconds", "0.5")
    run = containers.run(
        "y=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23; do y=$y$y; "
        "done; : > here; while [ ! -e go ]; do :; done"
    )
    until_here(containers, run)

    def is_reported() -> bool:
        metadata = containers.client.bundle(run).metadata
        return bool(metadata.get("cpu_usage") and metadata.get("memory_usage"))

    eventually(is_reported, "usage")
    go(containers, run)
    assert containers.end(run).state == "ready"
    containers.leave()


LISTEN = (
    'perl -e \'socket(S, 2, 1, 6); bind(S, pack("S n a4 x8", 2, 4711, "\\0\\0\\0\\0")); '
    'listen(S, 5); open(H, ">here"); close H; accept(C, S); sysread(C, $b, 99); '
    "syswrite(C, uc $b);'"
)


def say(containers: Containers, run: str, message: str) -> str:
    """`netcat` to where ``LISTEN`` listens, as a user does it: over our server."""
    token = (containers.server.home.path / "token").read_text().strip()
    answer = httpx.put(
        f"{containers.server.url}/rest/bundles/{run}/netcat/4711/",
        json={"message": message},
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    return answer.text


@on_both
def test_without_network_there_is_none_and_with_it_there_is_one(containers: Containers) -> None:
    port = containers.server.url.rpartition(":")[2]
    reach = f"(exec 3<>/dev/tcp/$gate/{port}) 2>/dev/null && echo reached || echo alone"
    interfaces = 'while read -r name rest; do echo "$name"; done < /proc/net/dev'
    routes = 'while read -r name rest; do echo "route $name"; done < /proc/net/route'
    names = "(exec 3<>/dev/tcp/localhost.localdomain/80) 2>&1"
    containers.start()
    without = containers.run(
        f"{interfaces}; {routes}; {names}; gate=127.0.0.1; {reach}", request_network=False
    )
    assert containers.end(without).state == "ready"
    said = containers.read(without)
    assert "lo:" in said
    assert "eth" not in said
    assert [line for line in said.splitlines() if line.startswith("route")] == ["route Iface"]
    assert "Name or service not known" in said or "failure in name resolution" in said
    assert said.endswith("alone\n")
    with_network = containers.run(f"{interfaces}; {routes}")
    assert containers.end(with_network).state == "ready"
    assert "eth0:" in containers.read(with_network)
    assert "route eth0" in containers.read(with_network)
    containers.leave()


@on_both
@pytest.mark.parametrize("network", [True, False])
def test_a_port_of_a_run_can_be_talked_to_whether_it_has_a_network_or_not(
    containers: Containers, network: bool
) -> None:
    containers.start()
    run = containers.run(LISTEN, request_network=network)
    until_here(containers, run)
    assert say(containers, run, "hello\n") == "HELLO\n"
    assert containers.end(run).state == "ready"
    containers.leave()


def test_a_run_can_be_written_to_and_read_while_it_runs(containers: Containers) -> None:
    containers.start()
    run = containers.run(
        "echo begun; mkdir sub; : > here; while [ ! -e sub/word ]; do sleep 0.05; done; "
        "echo heard $(< sub/word); while [ ! -e go ]; do sleep 0.05; done"
    )
    until_here(containers, run)
    assert containers.read(run) == "begun\n"
    containers.server.output("write", f"{run}/sub/word", "from outside")
    eventually(lambda: containers.read(run).endswith("heard from outside\n"), "it reads that")
    files = containers.server.output("cat", run).split()
    assert {"stdout", "stderr", "sub/"} <= set(files)
    go(containers, run)
    assert containers.end(run).state == "ready"
    assert containers.read(run, "sub/word").strip() == "from outside"
    containers.leave()


def test_a_run_reaches_no_token_no_engine_and_no_other_bundle(containers: Containers) -> None:
    other = upload(containers, "other", "secret of another\n")
    containers.start("--cpus", "2")
    neighbour = containers.run("echo secret > mine; " + WAIT, dependencies=[("other", other)])
    until_here(containers, neighbour)
    token = containers.server.home.path / "token"
    assert token.exists()
    tried = [
        str(token),
        "/var/run/docker.sock",
        str(containers.engine.socket),
        str(containers.place(neighbour) / "mine"),
        str(containers.work),
        f"/{neighbour}",
        f"/{neighbour}_dependencies",
        f"/proc/{containers.worker().process.pid}/environ",  # type: ignore[union-attr]
        "../",
    ]
    run = containers.run(
        "; ".join(f"ls -R {path} && echo REACHED {path}" for path in tried[:-1])
        + "; env; ls ..; ls /proc; true"
    )
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    said = containers.read(run)
    assert "REACHED" not in said
    assert token.read_text().strip() not in said
    assert "TOKEN" not in said
    assert neighbour not in said
    go(containers, neighbour)
    assert containers.end(neighbour).state == "ready"
    containers.leave()


@on_both
def test_a_missing_image_is_one_clear_sentence(containers: Containers) -> None:
    containers.start()
    run = containers.run("true", image="localhost/no-such-image:9")
    bundle = containers.end(run)
    assert bundle.state == "failed"
    message = bundle.metadata["failure_message"]
    assert "localhost/no-such-image:9" in message
    assert "\n" not in message
    nonsense = containers.run("true", image="UPPER case")
    assert "is no name of an image" in containers.end(nonsense).metadata["failure_message"]
    containers.leave()


def test_an_image_without_a_shell_is_one_clear_sentence(containers: Containers) -> None:
    containers.engine.import_files("localhost/empty:1", {"file": b"x"})
    containers.start()
    run = containers.run("true", image="localhost/empty:1")
    message = containers.end(run).metadata["failure_message"]
    assert message == "The image localhost/empty:1 has no /bin/sh, which is to run the command"
    containers.leave()


def test_a_gpu_that_the_engine_cannot_give_is_one_clear_sentence(
    containers: Containers, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1'\n")
    program.chmod(0o755)
    worker = containers.worker()
    worker.env["PATH"] = f"{programs}:{worker.env['PATH']}"
    containers.start()
    run = containers.run("true", request_gpus=1)
    message = containers.end(run).metadata["failure_message"]
    assert message.startswith("The engine cannot give it the GPUs that it requests")
    containers.leave()


@pytest.mark.engine("podman")
@pytest.mark.parametrize("engine", ["podman_engine"], indirect=True)
def test_a_podman_that_would_leave_gpus_away_is_one_clear_sentence(
    containers: Containers, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1'\n")
    program.chmod(0o755)
    worker = containers.worker()
    worker.env["PATH"] = f"{programs}:{worker.env['PATH']}"
    containers.start()
    run = containers.run("true", request_gpus=1)
    message = containers.end(run).metadata["failure_message"]
    assert message == "podman gives GPUs to containers as of 5.4, and this is older"
    containers.leave()


def test_an_idle_worker_asks_the_engine_nothing_but_for_its_events(
    containers: Containers, engine: DockerEngine
) -> None:
    path = engine.directory / "forwarder.sock"  # a socket's path must be short
    forwarder = before_engine(path, engine.socket)
    try:
        worker = containers.worker()
        worker.env["DOCKER_HOST"] = f"unix://{path}"
        containers.start("--checkin-frequency-seconds", "0.2", "--max-image-cache-size", "10g")
        run = containers.run("true")
        bundle = containers.end(run)
        assert bundle.state == "ready", bundle.metadata["failure_message"]
        containers.settle()
        eventually(lambda: engine.command("ps", "-aq") == "", "its container is removed")
        quiet = threading.Event()
        quiet.wait(0.5)  # for what follows the removal
        before = len(forwarder.requests)
        quiet.wait(3)
        assert forwarder.requests[before:] == []
        asked = [line for line in forwarder.requests if "/events" in line]
        assert len(asked) == 1
        containers.leave()
    finally:
        forwarder.close()
        path.unlink()


def test_two_workers_share_an_engine_and_remove_nothing_of_each_other(
    containers: Containers,
) -> None:
    containers.start("--tag", "one", "--tag-exclusive", worker_id="w1")
    containers.start("--tag", "two", "--tag-exclusive", worker_id="w2")
    first = containers.run(WAIT, request_queue="one")
    second = containers.run(WAIT, request_queue="two")
    until_here(containers, first)
    until_here(containers, second)
    go(containers, first)
    assert containers.end(first).state == "ready"
    eventually(lambda: not [*containers.work.glob("workers/w1/runs/*")], "it is forgotten")
    assert containers.workers["w1"].stop() == 0
    names = containers.left()
    assert [name for name in names if second in name]
    assert len(names) == 2  # a container and a network
    containers.start("--tag", "one", "--tag-exclusive", worker_id="w1")
    third = containers.run("true", request_queue="one")
    assert containers.end(third).state == "ready"
    go(containers, second)
    assert containers.end(second).state == "ready"
    containers.leave()


def test_runs_wait_for_an_engine_that_has_no_network_left(containers: Containers) -> None:
    """It keeps some thirty at a time by default, one for each worker."""
    engine = containers.engine
    engine.command("network", "create", "--subnet", ADDRESSES, "all-of-them")
    containers.start("--cpus", "3", "--checkin-frequency-seconds", "0.2")
    runs = [containers.run("echo x") for _ in range(2)]
    for run in runs:
        eventually(
            lambda run=run: str(
                containers.client.bundle(run).metadata.get("run_status")
            ).startswith("Waiting for a network: "),
            "its status says so",
        )
    without = containers.run("echo y", request_network=False)
    assert containers.end(without).state == "ready"
    killed, run = runs
    containers.client.act([{"type": "kill", "uuid": killed}])
    assert containers.end(killed).state == "killed"
    engine.command("network", "rm", "all-of-them")
    bundle = containers.end(run)
    assert bundle.state == "ready", bundle.metadata["failure_message"]
    containers.leave()


def test_leftovers_of_this_worker_go_at_its_start_and_others_stay(containers: Containers) -> None:
    owner = containers.work / "workers" / "w1"
    label = f"worker-manager.directory={owner}"
    engine = containers.engine
    for name, worker_id, directory in (
        ("ours", "w1", label),
        ("theirs", "w2", label),
        ("elsewhere", "w1", "worker-manager.directory=/elsewhere"),
    ):
        engine.command(
            *("create", "--name", name, "--network", "none"),
            *("--label", f"worker-manager.worker={worker_id}", "--label", directory),
            *("--label", "worker-manager.run=0x1-1", IMAGE, "/bin/sh"),
        )
    containers.start()
    eventually(lambda: "ours" not in containers.left(), "it is removed")
    assert {"theirs", "elsewhere"} <= set(containers.left())
    assert containers.worker().stop() == 0
    assert sorted(containers.left()) == ["elsewhere", "theirs"]


@on_both
def test_a_worker_that_gives_its_runs_back_leaves_nothing(containers: Containers) -> None:
    containers.start("--pass-down-termination")
    run = containers.run(WAIT)
    until_here(containers, run)
    assert containers.worker().stop() == WorkerExit.TERMINATED
    assert containers.client.bundle(run).state == "staged"
    assert containers.left() == []


def test_with_no_engine_the_worker_says_so(containers: Containers) -> None:
    worker = containers.worker()
    worker.env["DOCKER_HOST"] = f"unix://{containers.directory}/nothing.sock"
    containers.start()
    assert worker.wait() == WorkerExit.NO_RUNTIME
    said = [line for line in worker.log.splitlines() if line.startswith("bundle-worker: ")]
    assert len(said) == 1
    assert "no docker engine answers at" in said[0]


def test_what_the_engine_knows_of_a_run_is_removed_with_its_network(
    containers: Containers,
) -> None:
    containers.start()
    run = containers.run(WAIT)
    until_here(containers, run)
    (name,) = [name for name in containers.left() if "codalab_worker_network" in name]
    (network,) = json.loads(containers.engine.command("network", "inspect", name))
    assert name.endswith("_ext")
    assert network["Labels"]["worker-manager.worker"] == "w1"
    go(containers, run)
    assert containers.end(run).state == "ready"
    containers.leave()
