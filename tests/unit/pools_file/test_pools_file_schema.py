"""The schema says what reading the file says, as far as a schema can."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from backends import registry
from manager.pools_file.reading import BadPoolsFile, parse
from manager.pools_file.schema import schema_of

FILE = Path(__file__).parents[3] / "deploy/pools.schema.json"
POOL = '[[pools]]\nname = "p"\nbackend = "local-process"\n'
AWS = '[[pools]]\nname = "q"\nbackend = "aws-batch"\n'

GOOD = [
    POOL,
    'server = "https://x"\nsearch = ["a", "b"]\nlog-format = "json"\n' + POOL,
    "[budget]\nper-hour = 3\nsoft-fraction = 1\n" + POOL,
    '[defaults]\nimage = "i"\ncpus = 4\n' + POOL + AWS,
    AWS + 'image = "i"\nplatform = "fargate"\nprice-per-hour = 1\nbudget-per-day = 3.5\n',
    POOL.replace("local-process", "slurm-batch") + "patience-seconds = 300\n",
    POOL + "min-workers = 0\nmax-workers = 0\nno-prefilter = true\nworker-tag = 'a-1'\n",
]

BAD = [
    "",
    "pools = 3",
    "pools = []",
    "pools = [1]",
    '[pools]\nname = "p"\nbackend = "slurm"',
    '[[pools]]\nbackend = "local-process"',
    '[[pools]]\nname = "p"',
    POOL.replace("local-process", "slrum"),
    POOL.replace('"p"', '"a b"'),
    POOL.replace('"p"', "3"),
    POOL + "cpus = 0",
    POOL + "cpus = '1'",
    POOL + "cpus = 1.5",
    POOL + "cpus = true",
    POOL + "no-such-key = 1",
    POOL + "max = 3",
    POOL + "partition = 'x'",
    POOL + "sleep-time = 3",
    POOL + "no-prefilter = 1",
    POOL + "worker-tag = 'a_b'",
    POOL + "price-per-hour = -1",
    POOL + "when = 2026-01-01",
    "max-workers = 3\n" + POOL,
    "once = true\n" + POOL,
    "server = 'localhost'\n" + POOL,
    "search = 'x'\n" + POOL,
    "search = [1]\n" + POOL,
    "metrics-port = 65536\n" + POOL,
    "sleep-time = 0.01\n" + POOL,
    "log-format = 'xml'\n" + POOL,
    "defaults = 3\n" + POOL,
    "[defaults]\nname = 'x'\n" + POOL,
    "[defaults]\nsleep-time = 3\n" + POOL,
    "[defaults]\ncpus = 0\n" + POOL,
    "[defaults]\nno-such-key = 0\n" + POOL,
    "[budget]\nper-hour = -1\n" + POOL,
    "[budget]\nper-year = 1\n" + POOL,
    "[budget]\nsoft-fraction = 0\n" + POOL,
    AWS,
    POOL + '[defaults]\nplatform = "x"',
    POOL + AWS + 'image = "i"\nplatform = "x"',
]

OURS_ALONE = [
    POOL + POOL,
    POOL + "min-workers = 11",
    POOL + "worker-max-work-dir-size = '2x'",
    POOL + "worker-tag-exclusive = true",
    POOL + "budget-per-day = 3.0",
]
"""What no schema can say; docs/pools.md says so."""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return schema_of(registry.OURS)


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def is_good(text: str) -> bool:
    try:
        parse(text, Path("pools.toml"))
    except BadPoolsFile:
        return False
    return True


def test_the_schema_in_deploy_is_what_config_prints(schema: dict[str, Any]) -> None:
    assert json.loads(FILE.read_text()) == schema, "worker-manager config --schema says otherwise"


@pytest.mark.parametrize("text", GOOD)
def test_what_is_good_fits_the_schema(text: str, validator: Draft202012Validator) -> None:
    assert is_good(text)
    assert list(validator.iter_errors(tomllib.loads(text))) == []


@pytest.mark.parametrize("text", BAD)
def test_what_is_bad_does_not_fit_the_schema(text: str, validator: Draft202012Validator) -> None:
    assert not is_good(text)
    assert not validator.is_valid(tomllib.loads(text))


@pytest.mark.parametrize("text", OURS_ALONE)
def test_what_keys_say_together_is_told_by_reading_alone(
    text: str, validator: Draft202012Validator
) -> None:
    assert not is_good(text)
    assert validator.is_valid(tomllib.loads(text))


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        for key, value in table["properties"].items():
            assert "$ref" in value or value.get("description"), key
