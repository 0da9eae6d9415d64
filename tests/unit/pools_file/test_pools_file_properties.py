"""Files that nobody would write: each is read, or refused with a line for every problem."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from backends import registry
from manager.pools_file.model import grammar
from manager.pools_file.reading import BadPoolsFile, PoolsFile, parse
from manager.pools_file.schema import schema_of

VALIDATOR = Draft202012Validator(schema_of(registry.OURS))
KEYS = sorted({*grammar().anywhere, *grammar().sets, "name", "backend", "budget", "defaults", "x"})
VALUES = st.one_of(
    st.sampled_from(['"local-process"', '"slurm"', '"p"', '"q"', '"http://x"', '"1g"']),
    st.sampled_from(["0", "1", "-1", "5.5", "70000", "true", "false", "inf", "nan", "2026-01-01"]),
    st.sampled_from(["[]", '["a"]', "[1]", "{}", "{a = 1}", '"text"', '"auto"', '"docker"', '""']),
)  # fmt: skip
HEADERS = st.sampled_from(
    ["[[pools]]", "[[pools]]", "[[pools]]", "[defaults]", "[budget]", "[pools.x]", "[x]", "[[x]]"]
)
USUAL = st.sampled_from(
    [
        'backend = "local-process"',
        'backend = "aws-batch"',
        'name = "p"',
        'name = "q"',
        'image = "i"',
    ]
)
LINES = st.one_of(HEADERS, USUAL, st.builds("{} = {}".format, st.sampled_from(KEYS), VALUES))
POOL = ("[[pools]]", 'name = "one"', 'backend = "local-process"')
PROBLEM = re.compile(r"pools\.toml:(\d+): .+", re.DOTALL)


def read(text: str) -> PoolsFile | BadPoolsFile:
    try:
        return parse(text, Path("pools.toml"))
    except BadPoolsFile as error:
        return error


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(LINES, max_size=10))
def test_a_file_is_read_or_refused_by_lines_that_it_has(
    starts_well: bool, lines: list[str]
) -> None:
    lines = [*(POOL if starts_well else ()), *lines]
    text = "\n".join(lines)
    outcome = read(text)
    if isinstance(outcome, PoolsFile):
        assert VALIDATOR.is_valid(tomllib.loads(text)), "the schema is stricter than reading"
        return
    for problem in outcome.problems:
        match = PROBLEM.fullmatch(problem)
        assert match, problem
        assert 1 <= int(match[1]) <= max(1, len(lines))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="[]{}=\"'\n#.,abpols1 \\\r\t\u00e9\x00", max_size=60))
def test_whatever_is_in_a_file_there_is_a_word_for_it(text: str) -> None:
    assert isinstance(read(text), BadPoolsFile)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_pool_of_any_values_that_its_options_take_is_read_as_they_are(
    data: st.DataObject,
) -> None:
    """What is written for a number or a switch is what the pool has."""
    options = grammar().pools["local-process"]
    numbers = [key for key, option in options.items() if hasattr(option.type, "max_open")]
    chosen = data.draw(st.lists(st.sampled_from(sorted(numbers)), unique=True))
    chosen = [key for key in chosen if not key.startswith(("budget", "min-", "max-workers"))]
    given_values = {key: data.draw(st.integers(1, 256)) for key in chosen}
    lines = [*POOL, *(f"{key} = {value}" for key, value in given_values.items())]
    file = read("\n".join(lines))
    assert isinstance(file, PoolsFile), file
    for key, value in given_values.items():
        assert file.pools[0].settings[options[key].name or ""] == value
