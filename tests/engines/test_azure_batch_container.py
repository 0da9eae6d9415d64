"""What a node of Azure Batch makes of our container settings, by Docker's own hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure_stand import OWNER, RESOURCES
from docker_engine import IMAGE, DockerEngine

from backends.azure_batch import definition
from backends.azure_batch.options import AzureSettings
from backends.azure_batch.storage import text_of
from backends.base import KEY, Context, LaunchKey, LaunchRequest

pytestmark = pytest.mark.engine("docker")

STUBBORN = "localhost/stubborn:1"
"""An image whose entry point would run nothing that it is told to."""

SCRIPT = """
printf '%s\\n' "$TOKEN" "$@"
test -S "$SOCKET" && echo "the engine is here"
test -e "$AZ_BATCH_TASK_WORKING_DIR/worker-credentials" || echo "the file is gone"
mkdir "$2" && echo "the work directory can be made"
exit 5
"""


@pytest.fixture
def stubborn_image(docker_engine: DockerEngine) -> Iterator[str]:
    name = docker_engine.command("create", IMAGE, "true").strip()
    try:
        docker_engine.command("commit", "--change", 'ENTRYPOINT ["/bin/false"]', name, STUBBORN)
    finally:
        docker_engine.command("rm", name)
    yield STUBBORN
    docker_engine.command("rmi", STUBBORN)


def test_a_task_s_container_runs_the_worker_with_its_credentials_and_the_engine(
    docker_engine: DockerEngine,
    stubborn_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the service documents it: the command line is the container's, the task's directories
    and environment are in it at the same places."""
    monkeypatch.setattr(definition, "SOCKET", str(docker_engine.socket))
    context = Context(tmp_path, OWNER, "p")
    secrets = {"TOKEN": "it's $1"}
    argv = ("/bin/sh", "-c", SCRIPT, "worker", KEY, definition.work_directory(context))
    request = LaunchRequest(
        LaunchKey("p", 1, "0badcafe"),
        argv,
        RESOURCES,
        environment={"SOCKET": str(docker_engine.socket)},
        secrets=secrets,
    )
    file = {"httpUrl": "https://s/c/b", "filePath": definition.CREDENTIALS_FILE}
    settings = AzureSettings("https://a", "workers", stubborn_image, user="0")
    task = definition.task(request, context, settings, file)

    place = tmp_path / "task"
    (place / "wd").mkdir(parents=True)
    credentials = place / "wd" / definition.CREDENTIALS_FILE
    credentials.touch(mode=0o600)
    credentials.write_text(text_of(secrets))
    environment = {
        "AZ_BATCH_TASK_DIR": str(place),
        "AZ_BATCH_TASK_WORKING_DIR": str(place / "wd"),
        **{one["name"]: one["value"] for one in task["environmentSettings"]},
    }
    container = task["containerSettings"]
    name = docker_engine.command(
        "create",
        *[word for word in shlex.split(container["containerRunOptions"]) if word != "--rm"],
        *("--volume", f"{place}:{place}", "--workdir", str(place / "wd")),
        *(word for pair in environment.items() for word in ("--env", "=".join(pair))),
        container["imageName"],
        *shlex.split(task["commandLine"]),
    ).strip()
    try:
        docker_engine.command("start", name)
        assert docker_engine.command("wait", name).strip() == "5"
        assert docker_engine.command("logs", name).splitlines() == [
            "it's $1",
            "p-1-0badcafe",
            f"{place}/work",
            "the engine is here",
            "the file is gone",
            "the work directory can be made",
        ]
    finally:
        docker_engine.command("rm", "--force", name)
