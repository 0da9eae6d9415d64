"""moto as a server of its own, whose AWS Batch runs jobs as containers of the tests' engine.

What it does not do (5.2): hand secrets to a container, tell a child of an array its index, set the
user and the limits of a container.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from docker_engine import DockerEngine

REGION = "us-east-1"
START_SECONDS = 60.0

PROGRAM = """
import moto.batch.models
from moto.server import main

# It would name the host to containers by the address of a bridge, which the engine does not have.
moto.batch.models.platform = "none"
main(["-H", "127.0.0.1", "-p", "0"])
"""


class MotoServer:
    """``url`` answers from ``start`` to ``stop``."""

    def __init__(self, directory: Path, engine: DockerEngine) -> None:
        self.url = ""
        self._log = directory / "moto.log"
        self._engine = engine
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", PROGRAM],
                env=os.environ
                | self._engine.env
                | {
                    "MOTO_DOCKER_NETWORK_MODE": "host",
                    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (match := re.search(r"Running on (http://127\.0\.0\.1:\d+)", self.log())):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.05)
        self.url = match[1]

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self, image: str = "") -> None:
        """``image``: whose containers are to go, too."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None
        if image:
            only = ("--filter", f"ancestor={image}")
            left = self._engine.command("ps", "--all", "--quiet", *only)
            if left:
                self._engine.command("rm", "--force", *left.split())

    def hold_jobs(self) -> None:
        """From now on jobs wait for machines that do not come."""
        waiting = {"progression": "time", "seconds": 3600}
        self._tell("set-transition", {"model_name": "batch::job", "transition": waiting})

    def release_jobs(self) -> None:
        """From now on jobs run at once."""
        self._tell("unset-transition", {"model_name": "batch::job"})

    def _tell(self, what: str, content: dict[str, Any]) -> None:
        address = f"{self.url}/moto-api/state-manager/{what}"
        urllib.request.urlopen(address, json.dumps(content).encode(), timeout=60).close()

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    def add_role(self, name: str) -> str:
        policy = '{"Statement": [{"Principal": {"Service": "ecs-tasks.amazonaws.com"}}]}'
        made = self.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=policy)
        return str(made["Role"]["Arn"])

    def add_fargate_queue(self, name: str) -> None:
        """A queue, and all that moto wants beneath it."""
        network = self.client("ec2")
        vpc = network.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = network.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
        group = network.create_security_group(GroupName=name, Description=name, VpcId=vpc)
        batch = self.client("batch")
        environment = batch.create_compute_environment(
            computeEnvironmentName=name,
            type="MANAGED",
            serviceRole=self.add_role(f"{name}-service"),
            computeResources={
                "type": "FARGATE",
                "maxvCpus": 4,
                "subnets": [subnet],
                "securityGroupIds": [group["GroupId"]],
            },
        )
        batch.create_job_queue(
            jobQueueName=name,
            state="ENABLED",
            priority=1,
            computeEnvironmentOrder=[
                {"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}
            ],
        )
