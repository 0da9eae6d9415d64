"""terraform/azure and terraform/gcp by the real terraform, with stand-ins for their providers that
know what there is, and make it in the state alone: init, validate, apply, a plan that is empty, the
modules' own tests. What a machine is told is then run, as far as it can be here.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from terraform_module import SOURCE, TerraformModule, settings, with_schemas

pytestmark = pytest.mark.timeout(300)

Offline = tuple[Path, Path]
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake"
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/s"
VARIABLES = {
    "azure": {
        "subscription_id": SUBSCRIPTION,
        "ssh_public_key": KEY,
        "server_url": "https://bundles.example.org",
    },
    "gcp": {"project": "my-project", "server_url": "https://bundles.example.org"},
}
FURTHER = {
    "azure": {
        "resource_group_name": "folding",
        "subnet_id": SUBNET,
        "batch_service_principal_id": SUBSCRIPTION,
        "mail_address": "folding@example.org",
    },
    "gcp": {
        "subnet_id": "projects/host-project/regions/europe-west4/subnetworks/theirs",
        "mail_address": "folding@example.org",
    },
}
# The stand-in says something else each time it is asked who we are.
WHO_WE_ARE = f"""
locals {{
  subscription = "{SUBSCRIPTION}"
  tenant       = "{SUBSCRIPTION}"
  applicant    = "{SUBSCRIPTION}"
}}
"""
# A value that means something to a shell, to systemd, to YAML and to Terraform.
AWKWARD = 'it\'s 100% "$HOME" `id` \\n: - # tag'

# In place of Docker: runs what the container would.
DOCKER = """#!{python}
import os, sys
if sys.argv[1] == "run":
    start = next(i for i, word in enumerate(sys.argv) if word.endswith("start.py"))
    files = os.environ["FILES"]
    os.execv(sys.executable, [sys.executable, files + "/start.py", *sys.argv[start + 1 :]])
"""
CREDENTIALS = 'def credentials():\n    return {"WORKER_MANAGER_TOKEN": "secret"}\n'
MANAGER = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ["WORKER_MANAGER_TOKEN"]]))
"""


def options(*groups: dict[str, str]) -> list[str]:
    return [f"-var={name}={value}" for group in groups for name, value in group.items()]


@pytest.mark.engine("terraform-offline")
@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_a_module_is_applied_changes_nothing_when_applied_again_and_runs_its_manager(
    cloud: str, tmp_path: Path, terraform_offline: Offline
) -> None:
    runner = with_schemas(*terraform_offline)
    module = TerraformModule(tmp_path, f"{cloud}/examples/minimal", runner)
    if cloud == "azure":
        (module.directory / "../../override.tf").write_text(WHO_WE_ARE)
    words = json.dumps(["--worker-group", AWKWARD]).replace("${", "$${")
    (module.directory / "override.tf").write_text(
        f'module "worker_manager" {{\n  manager_options = {words}\n}}\n'
    )
    module.initialise()
    module.run("validate")
    variables = ("-input=false", *options(VARIABLES[cloud]))
    module.run("apply", "-auto-approve", *variables)
    module.run("plan", "-detailed-exitcode", *variables)  # 2: there are changes

    outputs = module.outputs()["worker_manager"]
    arguments, token = _run_as_the_machine_would(_cloud_config(module), tmp_path)
    assert arguments == [f"{cloud}-batch", *outputs["manager_options"]]
    given = settings(importlib.import_module(f"backends.{cloud}_batch"), arguments[1:])
    assert (given["worker_group"], given["metrics_port"]) == (AWKWARD, 9465)
    assert token == "secret"
    assert (tmp_path / "home" / "owner").read_text().strip() == outputs["owner"]


@pytest.mark.engine("terraform-offline")
@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_the_tests_of_a_module_pass_and_its_complete_example_is_applied(
    cloud: str, tmp_path: Path, terraform_offline: Offline
) -> None:
    runner = with_schemas(*terraform_offline)
    module = TerraformModule(tmp_path, cloud, runner)
    module.run("fmt", "-check", "-recursive")
    module.initialise()
    module.run("test")
    example = TerraformModule(tmp_path, f"{cloud}/examples/complete", runner)
    example.initialise()
    example.run(
        "apply", "-auto-approve", "-input=false", *options(VARIABLES[cloud], FURTHER[cloud])
    )
    assert example.outputs()["worker_manager"]["manager_options"]


@pytest.mark.engine("checkov")
def test_checkov_finds_nothing_that_is_not_explained_in_place(checkov: Path) -> None:
    done = subprocess.run(
        [
            *(str(checkov), "--directory", str(SOURCE), "--framework", "terraform"),
            *("--skip-download", "--quiet", "--compact", "--output", "json"),
            *("--skip-path", r"\.terraform", "--skip-path", "/tests/"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = json.loads(done.stdout)
    failed = [
        (check["check_id"], check["check_name"], check["file_path"], check["resource"])
        for check in found["results"]["failed_checks"]
    ]
    assert failed == []
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 100


def _cloud_config(module: TerraformModule) -> dict[str, Any]:
    """What cloud-init on the manager's machine is given."""
    state = json.loads((module.directory / "terraform.tfstate").read_text())
    for resource in state["resources"]:
        attributes = resource["instances"][0]["attributes"]
        if resource["type"] == "azurerm_linux_virtual_machine_scale_set":
            text = base64.b64decode(attributes["custom_data"]).decode()
        elif resource["type"] == "google_compute_instance_template":
            text = attributes["metadata"]["user-data"]
        else:
            continue
        assert text.startswith("#cloud-config\n")
        config: dict[str, Any] = yaml.safe_load(text)
        return config
    raise AssertionError("there is no machine")


def _run_as_the_machine_would(config: dict[str, Any], directory: Path) -> Any:
    """`run.sh`, with stand-ins for whatever is not in it; what the manager was told."""
    files = directory / "machine"
    files.mkdir()
    for file in config["write_files"]:
        (files / Path(file["path"]).name).write_text(file["content"])
    (files / "credentials.py").write_text(CREDENTIALS)
    programs = directory / "programs"
    programs.mkdir()
    nothing = "#!/bin/sh\n"
    for name, content in {
        "docker": DOCKER.format(python=sys.executable),
        "worker-manager": MANAGER.format(python=sys.executable),
        "curl": nothing,
        "python3": nothing,
        "iptables": nothing,
        "docker-credential-gcr": nothing,
    }.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    home = directory / "home"
    home.mkdir()
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FILES": str(files),
        "WORKER_MANAGER_HOME": str(home),
    }
    done = subprocess.run(
        ["sh", str(files / "run.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (told,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    return told
