"""What the install guides take from Terraform is there: outputs, variables, directories."""

from __future__ import annotations

import re

import pytest
from terraform_docs import MODULES, ROOT, items

DOCS = ROOT.parent / "docs/install"
BLOCK = r"^output \"(\w+)\" \{\n(.*?)^\}"


def guide(module: str) -> str:
    return (DOCS / f"{module}.md").read_text()


@pytest.mark.parametrize("module", MODULES)
def test_every_output_that_a_guide_reads_is_one_of_its_module(module: str) -> None:
    text = (ROOT / module / "outputs.tf").read_text()
    outputs = dict(re.findall(BLOCK, text, re.MULTILINE | re.DOTALL))
    read = re.findall(r"jq -\w+ \.(\w+)(?:\.(\w+))? \"\$made\"", guide(module))
    assert len(read) >= 5
    for name, part in read:
        assert name in outputs
        assert not part or re.search(rf"\b{part}\s*=", outputs[name]), f"{name}.{part}"


@pytest.mark.parametrize("module", MODULES)
def test_every_variable_that_a_guide_sets_is_one_of_its_example(module: str) -> None:
    example = (ROOT / module / "examples/minimal/main.tf").read_text()
    variables = {item.name for item in items("variable", example)}
    used = set(re.findall(r"\bTF_VAR_(\w+)=", guide(module)))
    assert used == variables
    assert f"cd terraform/{module}/examples/minimal\n" in guide(module)
    assert "terraform output -json worker_manager > made.json" in guide(module)
    assert "worker_manager" in dict(re.findall(BLOCK, example, re.MULTILINE | re.DOTALL))
