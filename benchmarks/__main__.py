"""Runs the measurements by name; prints figure, target and peer as a table in Markdown."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from benchmarks import containers, contents, judging, managing, simulating, slurm
from benchmarks.stand import Stand, cpu_seconds
from bundles.model import FINAL_STATES

IDLE_SECONDS = 30.0
PEER = ["xargs", "-P2", "-I{}", "bash", "-c", "{}"]


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, the result, what we hold ourselves to, what ran beside it."""

    what: str
    figure: str
    target: str
    holds: bool
    peer: str = "-"


def twenty_echoes() -> list[Row]:
    """20 × `echo hi` on one worker with two slots, beside `xargs -P2`."""
    commands = ["echo hi"] * 20
    peer_seconds = _peer_seconds(commands)
    with Stand() as stand:
        stand.start_worker()
        stand.drain(["true"])
        begin = time.perf_counter()
        stand.drain(commands)
        seconds = time.perf_counter() - begin
    return [
        Row(
            "20 × `echo hi`, one 2-slot worker",
            f"{seconds:.2f} s",
            "≤ 2 s",
            seconds <= 2,
            f"`xargs -P2`: {peer_seconds:.2f} s (× {seconds / peer_seconds:.1f})",
        )
    ]


def warm_bundle() -> list[Row]:
    """One bundle at a time on a warm idle worker, submit → ready."""
    with Stand() as stand:
        stand.start_worker()
        stand.drain(["true"])
        milliseconds = []
        for _ in range(200):
            begin = time.perf_counter()
            stand.drain(["true"])
            milliseconds.append((time.perf_counter() - begin) * 1000)
    median = statistics.median(milliseconds)
    slowest = statistics.quantiles(milliseconds, n=100)[98]
    return [
        Row("one bundle, warm worker, submit → ready, median", f"{median:.0f} ms", "≤ 100 ms",
            median <= 100),
        Row("the same, 99th percentile", f"{slowest:.0f} ms", "≤ 500 ms", slowest <= 500),
    ]  # fmt: skip


def running_bundle() -> list[Row]:
    """Reading the stdout of a running bundle, and killing it."""
    with Stand() as stand:
        stand.start_worker()
        reads, kills = [], []
        for _ in range(10):
            after = stand.client.changes(None).cursor
            uuids = stand.submit(["echo here; exec sleep 600"])
            stand.wait_for(uuids, after, frozenset({"running"}))
            begin = time.perf_counter()
            with stand.client.download(uuids[0], "stdout") as download:
                content = b"".join(download.chunks())
            reads.append((time.perf_counter() - begin) * 1000)
            if content not in (b"", b"here\n"):
                raise RuntimeError(f"stdout is {content!r}")
            begin = time.perf_counter()
            stand.client.act([{"type": "kill", "uuid": uuids[0]}])
            stand.wait_for(uuids, after, frozenset({"killed"}))
            kills.append((time.perf_counter() - begin) * 1000)
    read, kill = statistics.median(reads), statistics.median(kills)
    return [
        Row("stdout of a running bundle, median", f"{read:.0f} ms", "≤ 200 ms", read <= 200),
        Row("kill → killed, median", f"{kill:.0f} ms", "≤ 1 s", kill <= 1000),
    ]


def idle() -> list[Row]:
    """Processor time of server, worker and manager with nothing to do."""
    with Stand() as stand:
        processes = {
            "server": stand.server,
            "worker": stand.start_worker(),
            "manager": stand.start("manager", "local-process", "--min", "0", "--max", "3"),
        }
        stand.drain(["true"])
        _pause(5)  # what the start left to do is not idling
        before = {name: cpu_seconds(process) for name, process in processes.items()}
        _pause(IDLE_SECONDS)
        rows = []
        for name, process in processes.items():
            percent = (cpu_seconds(process) - before[name]) / IDLE_SECONDS * 100
            rows.append(Row(f"idle {name}", f"{percent:.2f} % of a core", "≤ 1 %", percent <= 1))
    return rows


def two_thousand() -> list[Row]:
    """2,000 × `true` drained by one worker with two slots, beside `xargs -P2`."""
    commands = ["true"] * 2000
    peer_seconds = _peer_seconds(commands)
    with Stand() as stand:
        stand.start_worker()
        stand.drain(["true"])
        begin = time.perf_counter()
        stand.drain(commands)
        seconds = time.perf_counter() - begin
    rate = len(commands) / seconds
    return [
        Row(
            "2,000 × `true`, one 2-slot worker",
            f"{rate:.0f} bundles/s",
            "≥ 50 bundles/s",
            rate >= 50,
            f"`xargs -P2`: {len(commands) / peer_seconds:.0f}/s",
        )
    ]


def ten_thousand() -> list[Row]:
    """10,000 bundles in one request; then, with them staged, how soon one that fits starts."""
    with Stand() as stand:
        worker = stand.start_worker()
        begin = time.perf_counter()
        stand.submit(["true"] * 10_000, request_gpus=1)
        submit_seconds = time.perf_counter() - begin
        milliseconds = []
        for _ in range(20):
            after = stand.client.changes(None).cursor
            begin = time.perf_counter()
            uuids = stand.submit(["true"])
            stand.wait_for(uuids, after, frozenset({"starting"}))
            milliseconds.append((time.perf_counter() - begin) * 1000)
            stand.wait_for(uuids, after, frozenset(FINAL_STATES))
        if worker.poll() is not None:
            raise RuntimeError("the worker left")
    median = statistics.median(milliseconds)
    return [
        Row("10,000 bundles in one request", f"{submit_seconds:.2f} s", "≤ 5 s",
            submit_seconds <= 5),
        Row("with 10,000 staged, submit → starting, median", f"{median:.0f} ms", "≤ 100 ms",
            median <= 100),
    ]  # fmt: skip


def help_text() -> list[Row]:
    """`worker-manager --help`, beside an empty Python."""
    ours = _median_seconds([sys.executable, "-m", "manager", "--help"])
    python = _median_seconds([sys.executable, "-c", "pass"])
    return [
        Row("`worker-manager --help`", f"{ours:.2f} s", "≤ 0.25 s", ours <= 0.25,
            f"`python -c pass`: {python:.2f} s"),
    ]  # fmt: skip


def twenty_echoes_docker() -> list[Row]:
    """20 × `echo hi` in containers on one worker with two slots, beside bare `docker run --rm`."""
    seconds, bare = containers.twenty_two_at_a_time()
    return [
        Row("20 × `echo hi` in containers, one 2-slot worker, median of 3", f"{seconds:.2f} s",
            "≤ 1.3 × bare", seconds <= 1.3 * bare,
            f"`xargs -P2 docker run --rm`: {bare:.2f} s (× {seconds / bare:.2f})"),
    ]  # fmt: skip


def warm_container() -> list[Row]:
    """One bundle in a container at a time, on a warm worker, beside bare `docker run --rm`."""
    seconds, bare = containers.one_at_a_time(15)
    return [
        Row("one bundle in a container, warm worker, median of 15", f"{seconds * 1000:.0f} ms",
            "≤ bare + 100 ms", seconds <= bare + 0.1, f"`docker run --rm`: {bare * 1000:.0f} ms"),
    ]  # fmt: skip


def thirty_two() -> list[Row]:
    """32 bundles in containers at once on one worker: what the worker itself takes."""
    percent = containers.many_at_once(30) * 100
    return [
        Row("32 containers at once for 30 s, their start and end included: the worker itself",
            f"{percent:.1f} % of a core", "≤ 10 %", percent <= 10),
    ]  # fmt: skip


def idle_docker() -> list[Row]:
    """An idle worker with a container engine, and what it costs the engine."""
    worker, engine, alone = (share * 100 for share in containers.nothing_to_do())
    return [
        Row("idle worker with an engine", f"{worker:.2f} % of a core", "≤ 1 %", worker <= 1),
        Row("the engine beside an idle worker", f"{engine:.2f} % of a core", "as alone + 0.2 %",
            engine <= alone + 0.2, f"the engine alone: {alone:.2f} %"),
    ]  # fmt: skip


def dependency_1gb() -> list[Row]:
    """A directory of 1 GiB, fetched and unpacked as a dependency, beside `curl | tar xz`."""
    with Stand() as stand:
        contents.large_tree(stand.path / "large")
        ours, theirs = contents.fetch_seconds(stand, stand.path / "large", 3)
    return [
        Row("a 1 GiB directory as dependency, submit → in the cache, median of 3",
            f"{1024 / ours:.0f} MiB/s", "≥ 0.8 × `curl \\| tar xz`", ours * 0.8 <= theirs,
            f"`curl \\| tar xz`: {1024 / theirs:.0f} MiB/s (× {theirs / ours:.2f})"),
    ]  # fmt: skip


def small_files() -> list[Row]:
    """A directory of 10,000 small files, fetched and unpacked, beside `curl | tar xz`."""
    with Stand() as stand:
        contents.many_files(stand.path / "small")
        ours, theirs = contents.fetch_seconds(stand, stand.path / "small", 5)
    return [
        Row("10,000 small files as dependency, submit → in the cache, median of 5",
            f"{ours:.2f} s", "≤ 2 × `curl \\| tar xz`", ours <= 2 * theirs,
            f"`curl \\| tar xz`: {theirs:.2f} s (× {ours / theirs:.2f})"),
    ]  # fmt: skip


def slurm_thousand() -> list[Row]:
    """0 → 1,000 workers on Slurm, and a tick with them, beside Slurm's own commands."""
    found = slurm.thousand()
    return [
        Row("0 → 1,000 workers requested of Slurm, the whole tick", f"{found.launch:.2f} s",
            "one `sbatch`, ≤ 2 s", found.launch <= 2,
            f"`sbatch --array` alone: {found.sbatch * 1000:.0f} ms"),
        Row("a tick with 1,000 Slurm jobs, median of 15", f"{found.tick * 1000:.0f} ms", "≤ 1 s",
            found.tick <= 1,
            f"`squeue` alone: {found.squeue * 1000:.0f} ms (× {found.tick / found.squeue:.1f})"),
    ]  # fmt: skip


def reference_traces() -> list[Row]:
    """The reference traces on the virtual clock, each at its whole length."""
    rows = []
    for traced in simulating.traces():
        whole = traced.report.whole
        idle = ", ".join(f"{seconds:g} s" for seconds in traced.idle_seconds)
        figure = (
            f"{whole.ran_nothing_fraction:.2%} of {whole.workers} workers ran nothing, "
            f"{whole.idle_fraction:.1%} idle"
        )
        holds = whole.ran_nothing_fraction < 0.01 and whole.idle_fraction <= 0.05
        peer = "-"
        if traced.oracle is not None:
            best = traced.oracle.whole.peak
            holds = holds and abs(whole.peak - best) <= 1
            peer = f"with a fresh queue: {best} workers at most; here: {whole.peak}"
        rows.append(
            Row(f"{traced.name}: {traced.report.description} (idle time-out {idle})", figure,
                "< 1 %, ≤ 5 %", holds, peer)
        )  # fmt: skip
    return rows


def simulated_million() -> list[Row]:
    """A day of 1,000,000 bundles and up to 10,000 workers on the virtual clock."""
    report, seconds, cpu = simulating.million()
    return [
        Row(f"a simulated day of {report.done:,} bundles, {report.whole.peak:,} workers at most",
            f"{seconds:.0f} s ({cpu:.0f} s of a core)", "≤ 5 min", seconds <= 300),
    ]  # fmt: skip


def decision() -> list[Row]:
    """A decision of the largest size that we hold ourselves to, of many forms."""
    found = judging.judged()
    slowest, memory = found.slowest_percent_seconds * 1000, found.memory_bytes / 1024**2
    return [
        Row(f"a decision: 10,000 staged × 5 pools × 10,000 workers, 99th percentile of "
            f"{judging.RUNS}, processor time", f"{slowest:.0f} ms", "≤ 100 ms", slowest <= 100),
        Row("the same, median", f"{found.median_seconds * 1000:.0f} ms", "-", True),
        Row("memory of that process", f"{memory:.0f} MiB", "≤ 300 MB", memory <= 300),
    ]  # fmt: skip


def million_staged() -> list[Row]:
    """What a tick asks a server with a million staged bundles."""
    seconds, without_seconds = managing.million_staged()
    return [
        Row("reading a queue of 1,000,000 staged bundles, 500 shapes", f"{seconds:.2f} s",
            "≤ 5 s", seconds <= 5,
            f"without its index: {without_seconds:.2f} s (× {without_seconds / seconds:.1f})"),
    ]  # fmt: skip


def idle_memory() -> list[Row]:
    """What an idle manager takes."""
    memory = managing.idle_memory_bytes() / 1024**2
    return [
        Row("memory of an idle manager, with metrics", f"{memory:.0f} MiB", "≤ 80 MB", memory <= 76)
    ]


def reaction() -> list[Row]:
    """From a bundle's upload to the request for a worker."""
    seconds = managing.reactions_seconds()
    median = statistics.median(seconds)
    return [
        Row(f"upload of a bundle → the backend was asked for a worker, median of {len(seconds)}",
            f"{median:.2f} s", "≤ 1 s", median <= 1),
    ]  # fmt: skip


MEASUREMENTS: dict[str, Callable[[], list[Row]]] = {
    "help-text": help_text,
    "twenty-echoes": twenty_echoes,
    "warm-bundle": warm_bundle,
    "running-bundle": running_bundle,
    "two-thousand": two_thousand,
    "ten-thousand": ten_thousand,
    "dependency-1gb": dependency_1gb,
    "small-files": small_files,
    "idle": idle,
    "20-echoes-docker": twenty_echoes_docker,
    "warm-container": warm_container,
    "thirty-two": thirty_two,
    "idle-docker": idle_docker,
    "slurm-thousand": slurm_thousand,
    "decision": decision,
    "million-staged": million_staged,
    "idle-memory": idle_memory,
    "reaction": reaction,
    "traces": reference_traces,
    "million": simulated_million,
}
OF_CONTAINERS = {"20-echoes-docker", "warm-container", "thirty-two", "idle-docker"}


def _peer_seconds(commands: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(
        PEER, input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def _median_seconds(command: list[str]) -> float:
    seconds = []
    for _ in range(15):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _pause(seconds: float) -> None:
    time.sleep(seconds)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
def main(names: tuple[str, ...]) -> None:
    """Measure NAMES (default: all) and print the table. Exit 1 when a target is missed."""
    click.echo(
        "| what | measured | target | beside it, in the same run |\n| --- | --- | --- | --- |"
    )
    missed = False
    for name in names or MEASUREMENTS:
        if name in OF_CONTAINERS and not containers.is_possible():
            click.echo(f"{name} is left out: it needs dockerd, and root", err=True)
            continue
        for row in MEASUREMENTS[name]():
            missed |= not row.holds
            mark = "" if row.holds else " **missed**"
            click.echo(f"| {row.what} | {row.figure}{mark} | {row.target} | {row.peer} |")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
