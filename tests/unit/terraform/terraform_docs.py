"""The part of a module's README that `terraform-docs` writes, by the settings in
terraform/.terraform-docs.yml: for machines that do not have it.

    python tests/unit/terraform/terraform_docs.py       # writes it into every README

Reads what `terraform fmt` leaves alone: attributes are indented by two blanks, blocks end with `}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3] / "terraform"
MODULES = ("aws", "azure", "gcp")
BEGIN = "<!-- BEGIN_TF_DOCS -->\n"
END = "<!-- END_TF_DOCS -->\n"

BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}$', re.MULTILINE | re.DOTALL)
ATTRIBUTE = re.compile(r"^  (\w+) += (.*)$", re.MULTILINE)
PROVIDER = re.compile(r'^    (\w+) = \{.*?version = "([^"]+)"', re.MULTILINE | re.DOTALL)
VERSION = re.compile(r'^  required_version = "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Item:
    """A variable or an output. ``default`` is HCL; None: there is none."""

    name: str
    description: str
    type: str = ""
    default: str | None = None


def items(kind: str, text: str) -> list[Item]:
    """By name, as terraform-docs has them."""
    found = []
    for match in BLOCK.finditer(text):
        if match[1] == kind:
            attributes = dict(ATTRIBUTE.findall(match[3]))
            description = attributes["description"][1:-1].replace('\\"', '"')
            found.append(
                Item(match[2], description, attributes.get("type", ""), attributes.get("default"))
            )
    return sorted(found, key=lambda item: item.name)


def tables(module: Path) -> str:
    versions = (module / "versions.tf").read_text()
    terraform = VERSION.search(versions)
    assert terraform is not None
    requirements = [("terraform", terraform[1]), *PROVIDER.findall(versions)]
    inputs = items("variable", (module / "variables.tf").read_text())
    outputs = items("output", (module / "outputs.tf").read_text())
    lines = ["## Requirements", "", "| Name | Version |", "|------|---------|"]
    for name, version in requirements:
        lines.append(f"| {_anchor('requirement', name)} | {version} |")
    lines += ["", "## Inputs", "", "| Name | Description | Type | Default | Required |"]
    lines.append("|------|-------------|------|---------|:--------:|")
    for item in inputs:
        default = "n/a" if item.default is None else f"{_default(item.default)}"
        required = "yes" if item.default is None else "no"
        lines.append(
            f"| {_anchor('input', item.name)} | {_cell(item.description)} | `{item.type}` "
            f"| {default} | {required} |"
        )
    lines += ["", "## Outputs", "", "| Name | Description |", "|------|-------------|"]
    lines += [f"| {_anchor('output', item.name)} | {_cell(item.description)} |" for item in outputs]
    return "\n".join(lines) + "\n"


def _anchor(kind: str, name: str) -> str:
    escaped = name.replace("_", "\\_")
    return f'<a name="{kind}_{name}"></a> [{escaped}](#{kind}\\_{escaped})'


def _cell(text: str) -> str:
    """As a cell of a table: names outside of code do not become italics."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("_", "\\_") for part in parts[::2]]
    return "`".join(parts)


def _default(value: str) -> str:
    words = re.findall(r'"[^"]*"', value)
    if value.startswith("[") and words:
        return f"<pre>[<br/>  {',<br/>  '.join(words)}<br/>]</pre>"
    return f"`{value}`"


def current(readme: str, module: Path) -> str:
    """The README as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables(module)}{END}{after}"


if __name__ == "__main__":
    for name in MODULES:
        readme = ROOT / name / "README.md"
        readme.write_text(current(readme.read_text(), ROOT / name))
