from __future__ import annotations

from pathlib import Path

import pytest
from terraform_docs import MODULES, ROOT, Item, current, items

CLOUDS = [ROOT / name for name in MODULES]


def variables(module: Path) -> dict[str, Item]:
    return {item.name: item for item in items("variable", (module / "variables.tf").read_text())}


def outputs(module: Path) -> set[str]:
    return {item.name for item in items("output", (module / "outputs.tf").read_text())}


@pytest.mark.parametrize("name", MODULES)
def test_a_readme_has_the_tables_that_terraform_docs_writes(name: str) -> None:
    readme = (ROOT / name / "README.md").read_text()
    assert current(readme, ROOT / name) == readme, "run tests/unit/terraform/terraform_docs.py"


def test_what_means_the_same_in_all_clouds_has_the_same_name_and_type() -> None:
    shared = set.intersection(*(set(variables(module)) for module in CLOUDS))
    assert shared == {
        *("server_url", "name", "pool", "tags", "min_workers", "max_workers"),
        *("worker_cpus", "worker_gpus", "worker_memory_mb", "worker_image"),
        *("network_cidr", "manager_image", "image_tag", "manager_options"),
        *("credentials_secret", "credential_variables", "alarm_actions"),
    }
    for name in shared:
        assert len({variables(module)[name].type for module in CLOUDS}) == 1, name
    assert set.intersection(*(outputs(module) for module in CLOUDS)) == {
        *("manager_options", "owner", "manager_identity", "worker_identity", "manager_image"),
        *("worker_image", "credentials_secret", "manager_log", "worker_log", "manager_service"),
    }


@pytest.mark.parametrize("module", CLOUDS, ids=MODULES)
def test_every_variable_and_output_says_what_it_is_and_text_is_refused_where_it_makes_no_sense(
    module: Path,
) -> None:
    text = (module / "variables.tf").read_text()
    free = {"worker_image", "manager_image", "manager_options", "alarm_actions"} | {
        *("vpc_id", "batch_service_role_arn"),  # AWS
        *("server_deletion_protection", "database_multi_zone"),
        "resource_group_name",
        "gpu_type",
    }
    for name, item in variables(module).items():
        assert item.description.endswith("."), name
        block = text.partition(f'variable "{name}" {{')[2].partition("\n}\n")[0]
        assert ("validation {" in block) == (name not in free), name
    for output in items("output", (module / "outputs.tf").read_text()):
        assert output.description.endswith("."), output.name
