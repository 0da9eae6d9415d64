"""terraform/aws by the real terraform and provider, against moto: applied, used, destroyed.

What is there already is in the module's own tests, which are run here, too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import eventually
from docker_engine import DockerEngine
from managing import Managers
from moto_server import REGION, MotoServer
from serving import Server
from terraform_module import TerraformModule, settings, with_moto
from worker_image import WorkerImage

from backends import aws_batch
from backends.base import Context, JobState

pytestmark = pytest.mark.timeout(600)

# moto wants to be told the role that AWS makes by itself. The second module runs bundles as
# processes of the worker's container, in the network that the first one made,
# and with its credentials.
OVERRIDE = """
module "worker_manager" {{
  batch_service_role_arn = "{role}"
}}
"""
SECOND = """
module "drained" {{
  source                 = "../.."
  name                   = "drained"
  pool                   = "drained"
  server_url             = var.server_url
  platform               = "fargate"
  vpc_id                 = module.worker_manager.vpc_id
  subnet_ids             = module.worker_manager.subnet_ids
  credentials_secret     = coalesce(module.worker_manager.credentials_secret)
  worker_image           = "{image}"
  manager_image          = "localhost/worker-manager:1"
  max_workers            = 2
  batch_service_role_arn = "{role}"
  manager_options        = {options}
}}

output "drained" {{
  value = module.drained
}}
"""
# For a test that has no time. One worker a launch: moto does not tell children of an array apart.
OPTIONS = [
    *("--min-seconds-between-workers", "0.5", "--sleep-time", "0.5"),
    *("--worker-idle-seconds", "2", "--metrics-port", "0"),
]
BUNDLES = 8
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}

# What moto (5.2) does not give back as it got it; all the rest must be as it was planned.
FORGOTTEN = {
    "aws_batch_job_queue.workers": "job_state_time_limit_action",
    "aws_ecs_service.manager": "availability_zone_rebalancing, enable_ecs_managed_tags",
    "aws_launch_template.machine": "tag_specifications",
    "aws_vpc_security_group_ingress_rule.home": "description",
}

IMAGE_MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": "sha256:0", "size": 1},
        "layers": [],
    }
)


@pytest.fixture
def image(server: Server, worker_image: WorkerImage) -> str:
    return worker_image.with_token((server.home.path / "token").read_text().strip())


@pytest.fixture
def moto(tmp_path: Path, docker_engine: DockerEngine, image: str) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path, docker_engine)
    try:
        server.start()
        yield server
    finally:
        server.stop(image)


@pytest.mark.engine("terraform")
@pytest.mark.engine("docker")
def test_what_terraform_makes_in_aws_is_used_and_all_of_it_goes_again(
    server: Server, moto: MotoServer, image: str, tmp_path: Path, terraform_mirror: Path
) -> None:
    module = TerraformModule(
        tmp_path, "aws/examples/minimal", with_moto(terraform_mirror, moto.url)
    )
    role = moto.add_role("batch")
    second = SECOND.format(role=role, image=image, options=json.dumps(OPTIONS))
    (module.directory / "override.tf").write_text(OVERRIDE.format(role=role))
    (module.directory / "second.tf").write_text(second)
    (module.directory / "../../override.tf").write_text(_ignoring(FORGOTTEN))
    variables = (f"-var=server_url={server.url}", f"-var=region={REGION}")
    module.initialise()
    module.run("apply", "-auto-approve", "-input=false", "-parallelism=30", *variables)
    module.run("plan", "-detailed-exitcode", "-input=false", *variables)  # 2: there are changes
    outputs = module.outputs()

    _launches_and_ends_its_own(server, moto, outputs["worker_manager"])
    _drains(server, moto, outputs["drained"], tmp_path / "home-of-the-service")

    module.run("destroy", "-auto-approve", "-input=false", "-parallelism=30", *variables)
    batch = moto.client("batch")
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.describe_compute_environments()["computeEnvironments"] == []


def _launches_and_ends_its_own(server: Server, moto: MotoServer, outputs: dict[str, Any]) -> None:
    """On machines of EC2, which moto cannot run workers on."""
    moto.hold_jobs()
    address, _, tag = outputs["worker_image"].partition(":")
    image = {"repositoryName": address.partition("/")[2]}
    moto.client("ecr").put_image(**image, imageTag=tag, imageManifest=IMAGE_MANIFEST)

    # The home as the service's task makes it: with the mark that the roles name.
    (server.home.path / "owner").write_text(outputs["owner"] + "\n")
    options = [*outputs["manager_options"], "--min-workers", "1", "--endpoint", moto.url]
    where = options.index("--metrics-port")
    del options[where : where + 2]  # it serves nobody with --once
    managed = subprocess.run(
        [sys.executable, "-m", "manager", "aws-batch", *options, "--once"],
        env=server.env | CREDENTIALS,
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert managed.returncode == 0, managed.stderr

    backend = _backend(server, outputs["owner"], options)
    wrong = [finding for finding in backend.check() if finding.error is not None]
    assert wrong == []
    (job,) = backend.list_jobs()
    assert job.state is JobState.PENDING
    described = moto.client("batch").describe_jobs(jobs=[job.id])["jobs"][0]
    assert described["jobQueue"] == outputs["job_queue_arn"]
    name = f"bundle-worker-{outputs['owner']}-aws-batch"
    assert f":job-definition/{name}:1" in described["jobDefinition"]
    assert backend.terminate([job.id]) == {job.id: None}
    described = moto.client("batch").describe_jobs(jobs=[job.id])["jobs"][0]
    assert described["statusReason"] == f"ended by worker-manager {outputs['owner']}"

    # A repository goes when its images have gone.
    moto.client("ecr").batch_delete_image(**image, imageIds=[{"imageTag": tag}])
    moto.release_jobs()


def _drains(server: Server, moto: MotoServer, outputs: dict[str, Any], home: Path) -> None:
    """By the very command of the service's task, with nothing but what Terraform gave it."""
    uuids = Managers(server).stage(BUNDLES)
    (container,) = _task(moto, outputs["manager_service"])["containerDefinitions"]
    assert [secret["name"] for secret in container["secrets"]] == ["WORKER_MANAGER_TOKEN"]
    home.mkdir()
    log = server.directory / "service.log"
    with log.open("wb") as output:
        manager = subprocess.Popen(
            [*container["entryPoint"], *container["command"]],
            env=server.env
            | CREDENTIALS
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "AWS_ENDPOINT_URL": moto.url,
                "WORKER_MANAGER_HOME": str(home),
                "WORKER_MANAGER_TOKEN": (server.home.path / "token").read_text().strip(),
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        with server.client() as client:

            def states() -> Counter[str]:
                found = client.search([f"uuid={','.join(uuids)}", ".limit=100"])
                return Counter(bundle.state for bundle in found)

            eventually(lambda: states() == {"ready": BUNDLES}, f"bundles drain {log.read_text()}")
        (address,) = set(re.findall(r"http://127\.0\.0\.1:\d+(?=/metrics)", log.read_text()))
        healthy = container["healthCheck"]["command"][1].replace("http://127.0.0.1:9465", address)
        subprocess.run(["sh", "-c", healthy], check=True, timeout=60)
        manager.send_signal(signal.SIGTERM)
        assert manager.wait(timeout=30) == 0, log.read_text()
    finally:
        manager.kill()
        manager.wait()
    assert (home / "owner").read_text().strip() == outputs["owner"]
    batch = moto.client("batch")
    eventually(lambda: _statuses(batch, outputs) == {"SUCCEEDED"}, "workers leave in good order")


def _task(moto: MotoServer, names: dict[str, str]) -> Any:
    ecs = moto.client("ecs")
    found = ecs.describe_services(cluster=names["cluster"], services=[names["service"]])
    arn = found["services"][0]["taskDefinition"]
    return ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]


def _statuses(batch: Any, outputs: dict[str, Any]) -> set[str]:
    every = [{"name": "JOB_NAME", "values": ["*"]}]
    jobs = batch.list_jobs(jobQueue=outputs["job_queue_arn"], filters=every)["jobSummaryList"]
    return {job["status"] for job in jobs}


@pytest.mark.engine("terraform")
def test_the_module_s_own_tests_pass_and_its_examples_are_valid(
    tmp_path: Path, terraform_mirror: Path
) -> None:
    nowhere = with_moto(terraform_mirror, "http://127.0.0.1:9")
    module = TerraformModule(tmp_path, "aws", nowhere)
    module.run("fmt", "-check", "-recursive")
    module.initialise()
    module.run("test")
    example = TerraformModule(tmp_path, "aws/examples/complete", nowhere)
    example.initialise()
    example.run("validate")


def _ignoring(forgotten: dict[str, str]) -> str:
    blocks = []
    for address, attributes in forgotten.items():
        kind, _, name = address.partition(".")
        lifecycle = f"  lifecycle {{\n    ignore_changes = [{attributes}]\n  }}"
        blocks.append(f'resource "{kind}" "{name}" {{\n{lifecycle}\n}}\n')
    return "\n".join(blocks)


def _backend(server: Server, owner: str, options: list[str]) -> Any:
    given = settings(aws_batch, options)
    context = Context(
        directory=server.home.path / "jobs" / given["pool"],
        owner=owner,
        pool=given["pool"],
        environment=dict(os.environ),
    )
    return aws_batch.create(context, given)
