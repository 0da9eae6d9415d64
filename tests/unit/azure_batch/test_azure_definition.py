"""A worker as a task of Azure Batch: what stands in it, and what must not."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends.azure_batch import definition
from backends.azure_batch.options import AzureSettings
from backends.base import KEY, Context, JobResources, LaunchKey, LaunchRequest

CONTEXT = Context(Path("/nowhere"), "0123456789abcdef", "p")
SETTINGS = AzureSettings("https://a.b.batch.azure.com", "workers", "bundle-worker:1")
CREDENTIALS = {"httpUrl": "https://s/c/b", "filePath": definition.CREDENTIALS_FILE}
MIB = 1024**2


def request(
    *argv: str, sequence: int = 1, gpus: int = 0, secrets: dict[str, str] | None = None
) -> LaunchRequest:
    key = LaunchKey("p", sequence, "0badcafe")
    return LaunchRequest(key, argv, JobResources(2, gpus, 512 * MIB), secrets=secrets or {})


def run(task: dict[str, Any], directory: Path) -> str:
    """What a node would make of the task's command line, without its container."""
    (directory / "wd").mkdir(exist_ok=True)
    return subprocess.run(
        shlex.split(task["commandLine"]),
        env={
            "PATH": "/usr/bin:/bin",
            "AZ_BATCH_TASK_DIR": str(directory),
            "AZ_BATCH_TASK_WORKING_DIR": str(directory / "wd"),
            **{one["name"]: one["value"] for one in task["environmentSettings"]},
        },
        cwd=directory / "wd",
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    "word", ["plain", "two words", "it's", '"$HOME"', "`id`", "a\nb", "\\", "", "ü", "-n"]
)
def test_every_word_of_the_command_line_arrives_as_it_is(word: str, tmp_path: Path) -> None:
    task = definition.task(request("printf", "%s|", word, KEY), CONTEXT, SETTINGS)
    assert run(task, tmp_path) == f"{word}|p-1-0badcafe|"


def test_the_task_s_own_directory_is_looked_up_where_the_task_is(tmp_path: Path) -> None:
    place = definition.work_directory(CONTEXT)
    task = definition.task(request("printf", "%s|", "--work-dir", place), CONTEXT, SETTINGS)
    assert run(task, tmp_path) == f"--work-dir|{tmp_path}/work|"


def test_credentials_become_the_worker_s_environment_and_their_file_goes(tmp_path: Path) -> None:
    (tmp_path / "wd").mkdir()
    file = tmp_path / "wd" / definition.CREDENTIALS_FILE
    file.write_text("export TOKEN='it'\"'\"'s $1'\n")
    asked = request("/bin/sh", "-c", 'printf %s "$TOKEN"; ls -a', secrets={"TOKEN": "it's $1"})
    task = definition.task(asked, CONTEXT, SETTINGS, CREDENTIALS)
    assert run(task, tmp_path) == "it's $1.\n..\n"
    assert not file.exists()
    assert "it's $1" not in json.dumps(task)


def test_a_worker_whose_credentials_did_not_come_does_not_start(tmp_path: Path) -> None:
    task = definition.task(request("echo", "started"), CONTEXT, SETTINGS, CREDENTIALS)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run(task, tmp_path)
    assert raised.value.stdout == ""


def test_a_container_has_its_resources_the_engine_and_no_gpu_that_was_not_asked_for() -> None:
    options = definition.task(request("w"), CONTEXT, SETTINGS)["containerSettings"][
        "containerRunOptions"
    ]
    assert "--cpus 2 --memory 512m" in options
    assert "--volume /var/run/docker.sock:/var/run/docker.sock" in options
    assert "--gpus" not in options
    with_gpu = definition.task(request("w", gpus=1), CONTEXT, SETTINGS)
    assert "--gpus 1" in with_gpu["containerSettings"]["containerRunOptions"]


def test_a_work_directory_of_the_user_s_is_the_same_place_inside_and_outside() -> None:
    context = Context(Path("/nowhere"), CONTEXT.owner, "p", work_directory_prefix="/scratch/")
    assert definition.work_directory(context) == f"/scratch/{KEY}"
    options = definition.task(request("w"), context, SETTINGS)["containerSettings"]
    place = "/scratch/p-1-0badcafe"
    assert f"--volume {place}:{place}" in options["containerRunOptions"]


def test_what_a_worker_prints_is_kept_where_the_operator_wants() -> None:
    identity = "/subscriptions/s/resourceGroups/g/providers/x/userAssignedIdentities/i"
    settings = AzureSettings(
        "https://a", "workers", "i", log_container_url="https://s/logs", identity=identity
    )
    (output,) = definition.task(request("w"), CONTEXT, settings)["outputFiles"]
    assert output["filePattern"] == "../std*.txt"
    assert output["destination"]["container"] == {
        "containerUrl": "https://s/logs",
        "path": "p-1-0badcafe",
        "identityReference": {"resourceId": identity},
    }


def test_tasks_go_in_hundreds_and_never_over_a_megabyte() -> None:
    small = [{"id": str(number)} for number in range(250)]
    assert [len(part) for part in definition.collections(small)] == [100, 100, 50]
    large = [{"id": str(number), "text": "x" * 100_000} for number in range(30)]
    parts = definition.collections(large)
    assert [task for part in parts for task in part] == large
    assert all(len(json.dumps({"value": part})) < 1_000_000 for part in parts)
    assert definition.collections([]) == []
