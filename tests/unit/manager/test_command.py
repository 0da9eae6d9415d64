from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from pool_fakes import FakeBackend

from backends.base import KEY, Capabilities, Idempotency, JobResources, LaunchKey
from bundles.errors import NotAuthenticated
from bundles.home import Credentials
from manager.command import WorkerOptions, worker_command
from manager.launcher import Launcher

LOCAL = Capabilities(1, Idempotency.SERVICE, 0.0, shares_files=True, worker_runtime="process")
SPOT = Capabilities(1, Idempotency.LOOKUP, 0.0, worker_runtime="docker", preemptible=True)


def argv(options: WorkerOptions, capabilities: Capabilities = LOCAL, *, gpus: int = 0) -> list[str]:
    return worker_command(
        options,
        capabilities,
        server="http://s",
        worker_id="w",
        work_directory="/d",
        cpus=2,
        gpus=gpus,
        memory_bytes=2 * 1024**3,
    )


def test_a_worker_gets_codalabs_flags_in_codalabs_order_and_then_ours() -> None:
    assert argv(WorkerOptions()) == [
        *(sys.executable, "-P", "-m", "worker"),
        *("--server", "http://s", "--verbose", "--exit-when-idle", "--idle-seconds", "600"),
        *("--work-dir", "/d", "--id", "w", "--network-prefix", "cl_worker_w_network"),
        *("--download-dependencies-max-retries", "3"),
        *("--max-memory", "2048m", "--gpuset", "NONE", "--cpus", "2", "--runtime", "process"),
    ]


def test_every_worker_option_is_handed_on_in_codalabs_order() -> None:
    options = WorkerOptions(
        executable="cl-worker",
        tag="t",
        group="g",
        idle_seconds=5,
        exit_after_num_runs=7,
        download_dependencies_max_retries=0,
        max_work_dir_size="10g",
        delete_work_dir_on_exit=True,
        exit_on_exception=True,
        tag_exclusive=True,
        pass_down_termination=True,
        checkin_frequency_seconds=9,
        shared_memory_size_gb=4,
        preemptible=True,
    )
    line = " ".join(argv(options, gpus=1))
    assert line == (
        "cl-worker --server http://s --verbose --exit-when-idle --idle-seconds 5 --work-dir /d "
        "--id w --network-prefix cl_worker_w_network --tag t --group g --exit-after-num-runs 7 "
        "--download-dependencies-max-retries 0 --max-work-dir-size 10g --delete-work-dir-on-exit "
        "--exit-on-exception --tag-exclusive --pass-down-termination "
        "--checkin-frequency-seconds 9 --shared-memory-size-gb 4 --preemptible "
        "--max-memory 2048m"
    )


@pytest.mark.parametrize("flag", ["--cpus", "--runtime"])
def test_a_worker_of_codalab_gets_no_flag_that_it_does_not_know(flag: str) -> None:
    assert flag not in argv(WorkerOptions(executable="/opt/codalab/bin/cl-worker"))


def test_an_executable_may_be_several_words() -> None:
    assert argv(WorkerOptions(executable="nice -n 5 'my worker'"))[:4] == [
        *("nice", "-n", "5", "my worker")
    ]


def test_where_workers_have_an_image_their_program_is_its_bundle_worker() -> None:
    assert argv(WorkerOptions(), SPOT)[0] == "bundle-worker"


def test_a_worker_is_told_by_its_backend_what_to_run_bundles_with_and_that_it_may_vanish() -> None:
    line = " ".join(argv(WorkerOptions(), SPOT))
    assert line.endswith("--cpus 2 --runtime docker")
    assert "--preemptible" in line


def test_the_requests_of_one_launch_differ_in_their_keys_alone() -> None:
    keys = LaunchKey.make_row("p", 4, 3)
    requests = launcher(Credentials(token="t")).requests(keys, FakeBackend(), {})
    assert len({request.argv for request in requests}) == 1
    assert KEY in requests[0].argv
    for key, request in zip(keys, requests, strict=True):
        assert request.command[request.argv.index(KEY)] == str(key)


def test_a_worker_whose_life_has_an_end_is_told_so_in_its_environment() -> None:
    made = replace(launcher(Credentials(token="t")), lifetime_seconds=1234567.0)
    keys = LaunchKey.make_row("p", 1, 1)
    (request,) = made.requests(keys, FakeBackend(), {})
    assert request.environment == {"WORKER_MANAGER_LIFETIME_SECONDS": "1234567"}
    (request,) = replace(made, lifetime_seconds=None).requests(keys, FakeBackend(), {})
    assert request.environment == {}


class Server:
    """What a Launcher asks of a client."""

    def __init__(self, *features: str) -> None:
        self.features = frozenset(features)

    def worker_token(self) -> str:
        return "worker-token"


def launcher(credentials: Credentials, executable: str | None = None) -> Launcher:
    return Launcher(
        "http://s", WorkerOptions(executable=executable), JobResources(1, 0, 1024**3), credentials
    )


def test_a_worker_gets_a_workers_token_and_never_ours() -> None:
    ours = Credentials(token="admin-token")
    secrets = launcher(ours).secrets(Server("tokens"))  # type: ignore[arg-type]
    assert secrets == {"WORKER_MANAGER_TOKEN": "worker-token"}


def test_on_a_server_without_worker_tokens_a_worker_gets_user_and_password() -> None:
    ours = Credentials(username="u", password="p")
    expected = {"CODALAB_USERNAME": "u", "CODALAB_PASSWORD": "p"}
    assert launcher(ours).secrets(Server()) == expected  # type: ignore[arg-type]
    codalabs = launcher(ours, "cl-worker").secrets(Server("tokens"))  # type: ignore[arg-type]
    assert codalabs == expected


def test_our_own_token_is_never_handed_to_a_worker() -> None:
    with pytest.raises(NotAuthenticated, match="CODALAB_USERNAME"):
        launcher(Credentials(token="t")).secrets(Server())  # type: ignore[arg-type]


def test_no_secret_is_on_the_command_line_or_shown_with_the_request() -> None:
    key = LaunchKey.make("p", 1)
    (request,) = launcher(Credentials(token="t")).requests(
        [key], FakeBackend(), {"WORKER_MANAGER_TOKEN": "hush"}
    )
    assert "hush" not in " ".join(request.argv)
    assert "hush" not in repr(request)
    assert request.secrets == {"WORKER_MANAGER_TOKEN": "hush"}
