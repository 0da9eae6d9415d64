"""terraform/aws by the real terraform and provider, against moto: applied, used, destroyed.

Everything from nothing, the server included: what its task is told is run here, with the database
of the tests in place of RDS, and without the balancer. What is there already is in the module's own
tests, which are run here, too.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from containers import eventually
from docker_engine import DockerEngine
from managing import Managers
from moto_server import REGION, MotoServer
from postgresql_engine import PostgreSQL
from serving import Server
from terraform_module import TerraformModule, settings, with_moto
from worker_image import WorkerImage

from backends import aws_batch
from backends.base import Context, JobState
from bundles.server.endpoints.changes import LONGEST_WAIT_SECONDS
from bundles.server.run import KEEP_ALIVE_SECONDS

pytestmark = pytest.mark.timeout(900)

# moto wants to be told the role that AWS makes by itself. The second module runs bundles as
# processes of the worker's container, in the network that the first one made, for its server and
# with its credentials.
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
  server_url             = coalesce(module.worker_manager.server_url)
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
    "aws_db_parameter_group.this": "parameter",
    "aws_ecs_service.manager": "availability_zone_rebalancing, enable_ecs_managed_tags",
    "aws_ecs_service.server": "availability_zone_rebalancing, enable_ecs_managed_tags, "
    "health_check_grace_period_seconds",
    "aws_launch_template.machine": "tag_specifications",
    "aws_vpc_security_group_egress_rule.balancer": "description",
    "aws_vpc_security_group_ingress_rule.home": "description",
    "aws_vpc_security_group_ingress_rule.server": "description",
}
# What it makes, and does not take back: the schedule of a password that RDS keeps.
KEPT = "module.worker_manager.aws_secretsmanager_secret_rotation.database[0]"

IMAGE_MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": "sha256:0", "size": 1},
        "layers": [],
    }
)


@pytest.fixture
def token() -> str:
    return secrets.token_hex(24)


@pytest.fixture
def image(token: str, worker_image: WorkerImage) -> str:
    return worker_image.with_token(token)


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
@pytest.mark.engine("postgresql")
def test_what_terraform_makes_in_aws_is_used_and_all_of_it_goes_again(
    moto: MotoServer,
    postgresql: PostgreSQL,
    token: str,
    image: str,
    tmp_path: Path,
    terraform_mirror: Path,
) -> None:
    module = TerraformModule(
        tmp_path, "aws/examples/minimal", with_moto(terraform_mirror, moto.url)
    )
    role = moto.add_role("batch")
    second = SECOND.format(role=role, image=image, options=json.dumps(OPTIONS))
    (module.directory / "override.tf").write_text(OVERRIDE.format(role=role))
    (module.directory / "second.tf").write_text(second)
    (module.directory / "../../override.tf").write_text(_ignoring(FORGOTTEN))
    variables = (f"-var=region={REGION}", "-var=server_deletion_protection=false")
    module.initialise()
    module.run("apply", "-auto-approve", "-input=false", "-parallelism=40", *variables)
    module.run("plan", "-detailed-exitcode", "-input=false", *variables)  # 2: there are changes
    outputs = module.outputs()
    made, drained = outputs["worker_manager"], outputs["drained"]
    vault = moto.client("secretsmanager")
    given = json.dumps({"WORKER_MANAGER_TOKEN": token})
    vault.put_secret_value(SecretId=made["credentials_secret"], SecretString=given)
    password = json.loads(vault.get_secret_value(SecretId=made["database_secret"])["SecretString"])
    assert password["password"] not in (module.directory / "terraform.tfstate").read_text()

    with _served(moto, postgresql, made, tmp_path) as server:
        _launches_and_ends_its_own(server, moto, made)
        _drains(server, moto, made["server_url"], drained, tmp_path / "home-of-the-service")
        kept = moto.client("s3").list_objects_v2(Bucket=made["contents_bucket"], Prefix="contents/")
        assert kept["KeyCount"] > BUNDLES

    module.run("state rm", KEPT)
    module.run("destroy", "-auto-approve", "-input=false", "-parallelism=40", *variables)
    batch = moto.client("batch")
    assert batch.describe_job_queues()["jobQueues"] == []
    assert batch.describe_compute_environments()["computeEnvironments"] == []
    assert moto.client("rds").describe_db_instances()["DBInstances"] == []
    assert moto.client("s3").list_buckets()["Buckets"] == []


@contextmanager
def _served(
    moto: MotoServer, postgresql: PostgreSQL, outputs: dict[str, Any], directory: Path
) -> Iterator[Server]:
    """The server by the very command of its service's task, told what Terraform tells it; but the
    database is elsewhere, and so is the home."""
    (container,) = _task(moto, outputs["server_service"])["containerDefinitions"]
    assert container["entryPoint"] == ["bundles"]
    words = [
        word.replace(f"{outputs['database_address']}:5432", postgresql.address)
        for word in container["command"]
    ]
    assert words[:5] == ["serve", "--host", "0.0.0.0", "--port", "2900"]
    server = Server(directory)
    told = _told(moto, container)
    server.env |= told | {
        "AWS_ENDPOINT_URL": moto.url,
        "WORKER_MANAGER_HOME": str(server.home.path),
    }
    postgresql.demand_password("bundles", told["PGPASSWORD"])
    _forbid_nothing_without_tls(moto, outputs["contents_bucket"])
    server.start("--host", "127.0.0.1", *words[5:])
    try:
        path, port, idle_seconds = _balancer(moto)
        assert port == 2900
        assert LONGEST_WAIT_SECONDS < idle_seconds < KEEP_ALIVE_SECONDS
        with urllib.request.urlopen(server.url + path, timeout=60) as answer:
            assert answer.status == 200
        # As another task by the same definition asks it: with the token that it is told, too.
        elsewhere = {
            "WORKER_MANAGER_HOME": str(directory / "elsewhere"),
            "WORKER_MANAGER_SERVER": server.url,
        }
        assert told["WORKER_MANAGER_SERVER"] == outputs["server_url"]
        asked = server.command("ls", env=elsewhere)
        assert asked.returncode == 0, asked.stderr
        yield server
    finally:
        assert server.stop() == 0


def _balancer(moto: MotoServer) -> tuple[str, int, int]:
    """What it asks to see whether the server is well, at which port, and how long it waits."""
    client = moto.client("elbv2")
    (group,) = client.describe_target_groups()["TargetGroups"]
    (balancer,) = client.describe_load_balancers()["LoadBalancers"]
    of = balancer["LoadBalancerArn"]
    found = client.describe_load_balancer_attributes(LoadBalancerArn=of)["Attributes"]
    attributes = {attribute["Key"]: attribute["Value"] for attribute in found}
    return group["HealthCheckPath"], group["Port"], int(attributes["idle_timeout.timeout_seconds"])


def _forbid_nothing_without_tls(moto: MotoServer, bucket: str) -> None:
    """There is none here, so that the bucket's policy does what it is for."""
    client = moto.client("s3")
    with pytest.raises(client.exceptions.ClientError, match="403"):
        client.head_object(Bucket=bucket, Key="contents/database")
    client.delete_bucket_policy(Bucket=bucket)
    with pytest.raises(client.exceptions.ClientError, match="404"):
        client.head_object(Bucket=bucket, Key="contents/database")


def _told(moto: MotoServer, container: Any) -> dict[str, str]:
    """The environment of a container of ECS, its secrets fetched."""
    told = dict(CREDENTIALS)
    told |= {pair["name"]: pair["value"] for pair in container["environment"]}
    for secret in container["secrets"]:
        found = re.fullmatch(r"(arn(?::[^:]+){6}):(\w+)::", secret["valueFrom"])
        assert found is not None
        values = moto.client("secretsmanager").get_secret_value(SecretId=found[1])
        told[secret["name"]] = json.loads(values["SecretString"])[found[2]]
    return told


def _launches_and_ends_its_own(server: Server, moto: MotoServer, outputs: dict[str, Any]) -> None:
    """On machines of EC2, which moto cannot run workers on."""
    moto.hold_jobs()
    address, _, tag = outputs["worker_image"].partition(":")
    image = {"repositoryName": address.partition("/")[2]}
    moto.client("ecr").put_image(**image, imageTag=tag, imageManifest=IMAGE_MANIFEST)

    # The home as the service's task makes it: with the mark that the roles name.
    (server.home.path / "owner").write_text(outputs["owner"] + "\n")
    options = _at(server.url, outputs["server_url"], outputs["manager_options"])
    options += ["--min-workers", "1", "--endpoint", moto.url]
    where = options.index("--metrics-port")
    del options[where : where + 2]  # it serves nobody with --once
    managed = subprocess.run(
        [sys.executable, "-m", "manager", "aws-batch", *options, "--once"],
        env=server.env,
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


def _drains(
    server: Server, moto: MotoServer, address: str, outputs: dict[str, Any], home: Path
) -> None:
    """By the very command of the service's task, with nothing but what Terraform gave it; the
    server is not at the ``address`` of its balancer."""
    uuids = Managers(server).stage(BUNDLES)
    (container,) = _task(moto, outputs["manager_service"])["containerDefinitions"]
    assert [secret["name"] for secret in container["secrets"]] == ["WORKER_MANAGER_TOKEN"]
    home.mkdir()
    log = server.directory / "service.log"
    with log.open("wb") as output:
        manager = subprocess.Popen(
            [*container["entryPoint"], *_at(server.url, address, container["command"])],
            env=_told(moto, container)
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "AWS_ENDPOINT_URL": moto.url,
                "WORKER_MANAGER_HOME": str(home),
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


def _at(url: str, address: str, words: list[str]) -> list[str]:
    assert words[words.index("--server") + 1] == address
    return [word.replace(address, url) for word in words]


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
