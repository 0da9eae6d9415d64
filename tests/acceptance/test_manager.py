"""`worker-manager local-process` beside a real server. Its workers are stand-ins here."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from managing import PATIENCE_SECONDS, Managers, eventually
from serving import Server


def test_staged_bundles_get_workers_up_to_the_maximum_and_no_more(managers: Managers) -> None:
    manager = managers.start("--min", "0", "--max", "2", "--sleep-time", "0.2")
    eventually(lambda: "keeping 0 to 2 workers" in managers.log(manager))
    assert managers.workers() == []
    managers.stage(5)
    eventually(lambda: len(managers.workers()) == 2, "two workers")
    managers.stage(5)
    plan = managers.json("local-process", "--max", "2", "--min", "0", "--plan", "-o", "json")
    assert plan["launch"] == {"local-process": 0}
    assert (plan["staged"], plan["pending"] + plan["active"]) == (10, 2)
    assert len(managers.workers()) == 2


def test_news_of_a_staged_bundle_wakes_the_manager(managers: Managers) -> None:
    manager = managers.start("--min", "0", "--max", "1", "--sleep-time", "3600")
    eventually(lambda: "keeping 0 to 1 workers" in managers.log(manager))
    managers.stage()
    # Nothing else than the server's word could wake it within this test's patience.
    eventually(lambda: len(managers.workers()) == 1, "a worker")


def test_a_worker_gets_a_token_of_its_own_that_is_on_no_command_line_and_in_no_file(
    managers: Managers,
) -> None:
    managers.start("--min", "1", "--max", "1")
    token_file = eventually(lambda: list(managers.jobs_directory.glob("*/*/token")))[0]
    token = eventually(token_file.read_text).strip()
    assert token
    assert token != managers.server.home.token_path.read_text().strip()
    arguments = (token_file.parent / "arguments").read_text()
    assert token not in arguments
    assert arguments.startswith(f"--server {managers.server.url} --verbose --exit-when-idle")
    token_file.unlink()
    for path in managers.server.home.path.rglob("*"):
        if path.is_file() and "bundles.sqlite" not in path.name:
            assert token.encode() not in path.read_bytes(), path


def test_a_manager_that_is_told_to_end_leaves_its_workers_alone(managers: Managers) -> None:
    manager = managers.start("--min", "2", "--max", "2")
    eventually(lambda: len(managers.workers()) == 2)
    before = {worker.pid for worker in managers.workers()}
    assert managers.kill(manager, signal.SIGTERM) == 0
    assert {worker.pid for worker in managers.workers()} == before

    again = managers.start("--min", "2", "--max", "2", "--sleep-time", "0.1")
    journal = managers.server.home.path / "journal" / "local-process.jsonl"
    lines = len(journal.read_text().splitlines())
    eventually(lambda: len(journal.read_text().splitlines()) > lines, "another tick")
    assert {worker.pid for worker in managers.workers()} == before
    assert managers.kill(again, signal.SIGINT) == 0


def test_the_minimum_is_restored_when_a_worker_ends(managers: Managers) -> None:
    managers.start("--min", "1", "--max", "2", "--sleep-time", "0.2")
    (worker,) = eventually(managers.workers)
    worker.terminate()
    eventually(lambda: [w.pid for w in managers.workers()] not in ([], [worker.pid]))


def test_the_second_manager_of_a_pool_says_so_waits_and_takes_over(managers: Managers) -> None:
    first = managers.start("--min", "1", "--max", "1")
    eventually(lambda: len(managers.workers()) == 1)
    second = managers.start("--min", "2", "--max", "2", "--sleep-time", "0.1")
    eventually(lambda: "another manager" in managers.log(second))
    said = managers.log(second).splitlines()
    assert len(said) == 1
    assert f"process {first.pid}" in said[0]
    assert len(managers.workers()) == 1
    managers.kill(first)
    eventually(lambda: len(managers.workers()) == 2, "the second to take over")


def test_a_manager_that_waits_for_another_ends_when_it_is_told_to(managers: Managers) -> None:
    managers.start("--min", "0")
    eventually(lambda: (managers.server.home.path / "ledger.db").exists())
    second = managers.start("--min", "0")
    eventually(lambda: "another manager" in managers.log(second))
    assert managers.kill(second, signal.SIGTERM) == 0


def test_pools_of_other_names_do_not_count_each_others_workers(managers: Managers) -> None:
    managers.start("--pool", "a", "--min", "1", "--max", "1", "--sleep-time", "0.2")
    managers.start("--pool", "b", "--min", "2", "--max", "2", "--sleep-time", "0.2")
    eventually(lambda: len(managers.workers()) == 3)
    pools = managers.json("status", "-o", "json")["pools"]
    assert [(pool["pool"], len(pool["jobs"])) for pool in pools] == [("a", 1), ("b", 2)]
    assert all(pool["manager"] for pool in pools)


def test_processes_that_are_not_the_managers_are_neither_counted_nor_ended(
    managers: Managers,
) -> None:
    words = ["--work-dir", "/nowhere", "--id", "local-process-1-00000000"]
    with subprocess.Popen([str(managers.stand_in()), *words], cwd=managers.directory) as stranger:
        manager = managers.start("--min", "1", "--max", "1", "--sleep-time", "0.1")
        eventually(lambda: len(managers.workers()) == 1)
        managers.kill(manager, signal.SIGTERM)
        assert stranger.poll() is None
        stranger.terminate()


KILLED_AT = """
import os, signal, sys
from manager import keeper, ledger
from backends import local_process

def killing(owner, name, after):
    whole = getattr(owner, name)
    def killed(*arguments, **named):
        if after:
            whole(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, killed)

owner, name, after = sys.argv[1:4]
owner = {"ledger": ledger.Ledger, "backend": local_process.LocalProcess,
         "keeper": keeper.PoolKeeper, "module": local_process, "journal": keeper.Journal}[owner]
killing(owner, name, after == "after")
from manager.cli import main
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step",
    [
        "ledger.intend",
        "backend.launch",
        "backend._launch",
        "backend._spawn",
        "keeper._settle",
        "journal.write",
    ],
)
def test_a_manager_killed_at_any_step_of_a_launch_leaves_each_worker_launched_once(
    managers: Managers, step: str, when: str
) -> None:
    managers.stage(4)
    owner, _, name = step.partition(".")
    options = ["local-process", "--min", "0", "--max", "2", "--sleep-time", "0.2"]
    options += ["--worker-executable", str(managers.stand_in())]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, owner, name, when, *options],
        env=managers.server.env,
        cwd=managers.directory,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    managers.start(*options[1:7])
    eventually(lambda: len(managers.workers()) == 2, "two workers")

    def settled() -> bool:
        ledger = sqlite3.connect(managers.server.home.path / "ledger.db")
        try:
            (open_intents,) = ledger.execute(
                "SELECT count(*) FROM launch WHERE outcome IS NULL"
            ).fetchone()
            return open_intents == 0
        finally:
            ledger.close()

    eventually(settled, "every intent to be settled")
    workers = managers.workers()
    assert len(workers) == 2
    ids = [words[words.index("--id") + 1] for words in (w.cmdline() for w in workers)]
    assert len(set(ids)) == 2


def test_a_plan_says_what_would_be_done_and_changes_nothing(
    managers: Managers, server: Server
) -> None:
    managers.stage(2)
    managers.stage(1, request_cpus=64)
    before = {path: path.stat().st_mtime_ns for path in server.home.path.rglob("*.db*")}
    plan = managers.json("--max", "5", "local-process", "--min", "1", "--plan", "-o", "json")
    assert set(plan) == {"launch", "end", "drain", "reasons", "staged", "pending", "active"}
    assert plan["launch"] == {"local-process": 2}
    assert (plan["end"], plan["staged"], plan["pending"], plan["active"]) == ([], 2, 0, 0)
    assert any("1 staged bundle would not fit" in reason for reason in plan["reasons"])
    after = {path: path.stat().st_mtime_ns for path in server.home.path.rglob("*.db*")}
    assert after == before
    assert not (server.home.path / "owner").exists()
    text = managers.command("local-process", "--plan")
    assert text.returncode == 0
    assert text.stdout.startswith("local-process: launch 2 workers")


def test_once_is_one_tick(managers: Managers) -> None:
    managers.stage(1)
    done = managers.command(
        *("local-process", "--min", "0", "--once"),
        *("--worker-executable", str(managers.stand_in())),
    )
    assert done.returncode == 0, done.stderr
    assert len(eventually(managers.workers)) == 1


def test_once_that_got_no_worker_has_failed(managers: Managers) -> None:
    managers.stage(1)
    done = managers.command(
        *("local-process", "--min", "0", "--once", "--worker-executable", "/no/such/program")
    )
    assert done.returncode == 1
    assert "1 worker not launched: there is no executable '/no/such/program'" in done.stderr


def test_status_tells_the_jobs_and_the_last_decision_with_its_reasons(managers: Managers) -> None:
    managers.stage(1)
    managers.start("--min", "0", "--max", "3")
    eventually(managers.workers)
    journal = managers.server.home.path / "journal" / "local-process.jsonl"
    eventually(journal.exists)
    (pool,) = managers.json("status", "-o", "json")["pools"]
    assert pool["server"] == managers.server.url
    assert pool["jobs"][0]["state"] == "active"
    assert pool["last"]["decision"]["reasons"]
    shown = managers.command("status")
    assert shown.returncode == 0
    assert pool["jobs"][0]["worker"] in shown.stdout
    assert "1 of 0 to 3 workers, 1 launched in all" in shown.stdout


def test_a_server_that_goes_away_is_said_once_and_found_again(
    managers: Managers, server: Server
) -> None:
    manager = managers.start("--min", "0", "--max", "1", "--sleep-time", "0.1")
    eventually(lambda: "keeping" in managers.log(manager))
    server.stop(signal.SIGKILL)
    eventually(lambda: "nothing is launched or ended while this lasts" in managers.log(manager))
    server.start()
    eventually(lambda: "carrying on" in managers.log(manager), "the manager to carry on")
    assert managers.log(manager).count("while this lasts") == 1
    managers.stage()
    eventually(managers.workers, "a worker")


def test_wrong_credentials_are_one_line_and_exit_1(managers: Managers, server: Server) -> None:
    server.env["WORKER_MANAGER_TOKEN"] = "wrong"
    done = managers.command("local-process", "--min", "1")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("worker-manager: ")]
    assert len(said) == 1
    assert "Traceback" not in done.stderr
    assert managers.workers() == []


def test_a_worker_that_cannot_start_is_not_launched_over_and_over(managers: Managers) -> None:
    broken = managers.directory / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    manager = managers.start(
        *("--min", "1", "--max", "3", "--sleep-time", "0.1"),
        *("--worker-executable", str(broken)),
        stand_ins=False,
    )
    eventually(lambda: "does not take its credentials" in managers.log(manager))
    journal = managers.server.home.path / "journal" / "local-process.jsonl"

    def held() -> bool:
        reasons = json.loads(journal.read_text().splitlines()[-1])["decision"]["reasons"]
        return any(reason["code"] == "held" for reason in reasons)

    eventually(held, "launches to be held")


def test_a_restart_keeps_the_workers(managers: Managers) -> None:
    manager = managers.start("--min", "1", "--max", "1", "--restart-after-seconds", "1")
    (worker,) = eventually(managers.workers)
    eventually(lambda: managers.log(manager).count("keeping 1 to 1") >= 3, "two restarts")
    assert [w.pid for w in managers.workers()] == [worker.pid]
    assert psutil.pid_exists(manager.pid)


def test_a_home_that_cannot_be_written_is_one_line_and_exit_2(
    managers: Managers, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = managers.command(
        "local-process", "--home", str(tmp_path / "file"), "--server", managers.server.url
    )
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("idle_seconds", ["0", "1"])
def test_bundles_are_run_by_the_workers_that_the_manager_launched_which_then_leave(
    managers: Managers, server: Server, idle_seconds: str
) -> None:
    manager = managers.start(
        *("--min", "0", "--max", "3", "--worker-idle-seconds", idle_seconds),
        *("--sleep-time", "0.2"),
        stand_ins=False,
    )
    uuids = managers.stage(12, "echo $((6 * 7))")

    def all_ready() -> bool:
        assert len(managers.workers()) <= 3
        with server.client() as client:
            return {bundle.state for bundle in client.bundles(uuids)} == {"ready"}

    eventually(all_ready, "every bundle's end")
    eventually(lambda: not managers.workers(), "the idle workers' leaving")
    with server.client() as client:
        for uuid in uuids:
            with client.download(uuid, "stdout") as download:
                assert b"".join(download.chunks()) == b"42\n"
    eventually(lambda: "left with exit code 0" in managers.log(manager))
    (pool,) = managers.json("status", "-o", "json")["pools"]
    assert {(job["state"], job["exit_code"]) for job in pool["jobs"]} == {("ended", 0)}
    assert pool["launched"] == len(pool["jobs"]) <= 6, "nobody leaves before it had a chance"
