"""terraform/aws by the real terraform and provider, against moto: applied, used, destroyed.

Fargate, and what is there already, are in the module's own tests, which are run here, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from moto_server import REGION, MotoServer
from serving import Server
from terraform_module import TerraformModule

from backends import aws_batch
from backends.base import Context, JobState
from manager.options import pool_options

pytestmark = [pytest.mark.engine("terraform"), pytest.mark.timeout(600)]

# moto wants to be told the role that AWS makes by itself.
OVERRIDE = 'module "worker_manager" {{\n  batch_service_role_arn = "{role}"\n}}\n'
# What moto (5.2) does not give back as it got it; all the rest must be as it was planned.
FORGOTTEN = {
    "aws_batch_job_queue.workers": "job_state_time_limit_action",
    "aws_ecs_service.manager": "availability_zone_rebalancing, enable_ecs_managed_tags",
    "aws_launch_template.machine": "tag_specifications",
    "aws_vpc_security_group_ingress_rule.home": "description",
}
WAITING = b'{"model_name": "batch::job", "transition": {"progression": "time", "seconds": 3600}}'

IMAGE_MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": "sha256:0", "size": 1},
        "layers": [],
    }
)


@pytest.fixture
def moto(tmp_path: Path) -> Iterator[MotoServer]:
    """Its jobs wait for machines that never come."""
    server = MotoServer(tmp_path, None)
    try:
        server.start()
        urllib.request.urlopen(
            f"{server.url}/moto-api/state-manager/set-transition", WAITING, timeout=60
        ).close()
        yield server
    finally:
        server.stop()


def test_what_terraform_makes_in_aws_is_what_the_manager_needs_and_all_of_it_goes_again(
    server: Server, moto: MotoServer, tmp_path: Path, terraform_mirror: Path
) -> None:
    module = TerraformModule(tmp_path, "aws/examples/minimal", terraform_mirror, moto.url)
    (module.directory / "override.tf").write_text(OVERRIDE.format(role=moto.add_role("batch")))
    (module.directory / "../../override.tf").write_text(_ignoring(FORGOTTEN))
    variables = (f"-var=server_url={server.url}", f"-var=region={REGION}")
    module.initialise()
    module.run("apply", "-auto-approve", "-input=false", "-parallelism=30", *variables)
    module.run("plan", "-detailed-exitcode", "-input=false", *variables)  # 2: there are changes
    outputs = module.outputs()["worker_manager"]
    address, _, tag = outputs["worker_image"].partition(":")
    image = {"repositoryName": address.partition("/")[2]}
    moto.client("ecr").put_image(**image, imageTag=tag, imageManifest=IMAGE_MANIFEST)

    # The home as the service's task makes it: with the mark that the roles name.
    (server.home.path / "owner").write_text(outputs["owner"] + "\n")
    options = [*outputs["manager_options"], "--min-workers", "1", "--endpoint", moto.url]
    managed = subprocess.run(
        [sys.executable, "-m", "manager", "aws-batch", *options, "--once"],
        env=server.env | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        cwd=tmp_path,
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
    assert (
        f":job-definition/bundle-worker-{outputs['owner']}-aws-batch:1"
        in (described["jobDefinition"])
    )
    assert backend.terminate([job.id]) == {job.id: None}
    described = moto.client("batch").describe_jobs(jobs=[job.id])["jobs"][0]
    assert described["statusReason"] == f"ended by worker-manager {outputs['owner']}"

    # A repository goes when its images have gone.
    moto.client("ecr").batch_delete_image(**image, imageIds=[{"imageTag": tag}])
    module.run("destroy", "-auto-approve", "-input=false", "-parallelism=30", *variables)
    batch = moto.client("batch")
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.describe_compute_environments()["computeEnvironments"] == []


def test_the_module_s_own_tests_pass_and_its_examples_are_valid(
    tmp_path: Path, terraform_mirror: Path
) -> None:
    nowhere = "http://127.0.0.1:9"
    module = TerraformModule(tmp_path, "aws", terraform_mirror, nowhere)
    module.run("fmt", "-check", "-recursive")
    module.initialise()
    module.run("test")
    example = TerraformModule(tmp_path, "aws/examples/complete", terraform_mirror, nowhere)
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
    command = click.Command("aws-batch", params=[*pool_options(), *aws_batch.options()])
    settings = command.make_context("aws-batch", list(options)).params
    context = Context(
        directory=server.home.path / "jobs" / settings["pool"],
        owner=owner,
        pool=settings["pool"],
        environment=dict(os.environ),
    )
    return aws_batch.create(context, settings)
