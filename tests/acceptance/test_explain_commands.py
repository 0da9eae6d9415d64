"""`worker-manager explain`, `replay` and `doctor` beside a real server and a real manager."""

from __future__ import annotations

import signal

from managing import Managers, eventually
from serving import Server


def test_explain_knows_the_decision_its_workers_and_what_a_bundle_waits_for(
    managers: Managers,
) -> None:
    unknown = managers.command("explain", "now")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "nothing is known" in unknown.stderr

    managers.start("--min", "0", "--max", "1", "--sleep-time", "0.2")
    (fits,) = managers.stage()
    (large,) = managers.stage(request_cpus=64)
    eventually(lambda: managers.workers())

    before = managers.command("explain", "-9d")
    assert "its journal begins at" in before.stdout
    (now,) = eventually(
        lambda: [
            found
            for found in managers.json("explain", "now", "-o", "json")
            if found["entry"]["snapshot"]["pending"]
        ]
    )
    assert now["name"] == "local-process"
    assert now["manager"]
    assert now["entry"]["config"]["max_workers"] == 1

    (job,) = managers.json("status", "-o", "json")["pools"][0]["jobs"]
    (worker,) = managers.json("explain", job["worker"], "-o", "json")
    assert (worker["outcome"], worker["state"]) == ("launched", "active")
    assert worker["entry"]["decision"]["launch"] == 1
    shown = managers.command("explain", job["worker"]).stdout
    assert "launch 1 worker: " in shown

    (waits,) = managers.json("explain", fits, "-o", "json")
    assert waits["state"] == "staged"
    assert waits["pools"] == [{"pool": "local-process", "can_hold": True, "why_not": ""}]
    assert [change["to"] for change in waits["changes"]][-1] == "staged"
    (never,) = managers.json("explain", large[:12], "-o", "json")
    assert "it asks for 64 of cpus, and a worker has 1" in never["pools"][0]["why_not"]
    nobody = managers.command("explain", "local-process-99-00000000")
    assert nobody.returncode == 1
    assert "nothing is known of local-process-99-00000000" in nobody.stderr


def test_doctor_finds_nothing_wrong_with_a_pool_that_works_and_says_what_is(
    managers: Managers, server: Server
) -> None:
    found = managers.json("doctor", "--min", "0", "local-process", "-o", "json")
    assert [check for check in found if check["status"] != "ok"] == []
    assert "worker-starts" in {check["check"] for check in found}
    assert not (server.home.path / "ledger.db").exists()

    server.stop()
    done = managers.command("doctor", "local-process")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert line.split()[1] == "server-reachable"
    assert "start the server" in line


def test_a_replay_of_a_real_journal_with_its_own_settings_is_what_was(managers: Managers) -> None:
    manager = managers.start("--min", "0", "--max", "2", "--sleep-time", "0.2")
    eventually(lambda: "keeping 0 to 2 workers" in managers.log(manager))
    managers.stage(4)
    eventually(lambda: len(managers.workers()) == 2, "two workers")
    assert managers.kill(manager, signal.SIGTERM) == 0
    journal = managers.server.home.path / "journal" / "local-process.jsonl"
    same = managers.json("replay", str(journal), "-o", "json")["summary"]
    assert same["was"] == same["would"]
    assert (same["was"]["launched"], same["other_rule_ticks"]) == (2, 0)
    fewer = managers.json("replay", str(journal), "--max", "1", "-o", "json")["summary"]
    assert fewer["would"]["launched"] == 1
