from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest

from backends import registry
from manager.cli import main
from manager.commands.pool import pool_command
from manager.pools_file.reading import BadPoolsFile, PoolsFile, load, parse

PATH = Path("pools.toml")
GOOD = """\
server = "http://127.0.0.1:9"
search = [".tag=x", "name=a b"]
metrics-port = 0

[budget]
per-hour = 10.0
per-day = 100

[defaults]
worker-idle-seconds = 300
image = "a/b:c"
cpus = 2

[[pools]]
name = "campus"
backend = "slurm"
max-workers = 20
cpus = 8
partition = "batch"
no-prefilter = true
patience-seconds = 300

[[pools]]
name = "spot"
backend = "aws-batch"
job-queue = "-spot=1"
price-per-hour = 0.12
budget-per-hour = 5.0
"""


@pytest.fixture(autouse=True)
def _nobody_in_particular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SERVER", "TOKEN"):
        monkeypatch.delenv(f"WORKER_MANAGER_{name}", raising=False)
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION", "AZURE_BATCH_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKER_MANAGER_HOME", str(tmp_path / "home"))


def problems(text: str, **more: Any) -> list[str]:
    with pytest.raises(BadPoolsFile) as caught:
        parse(text, PATH, **more)
    return list(caught.value.problems)


def pool(*lines: str, backend: str = "local-process") -> str:
    return "\n".join(["[[pools]]", 'name = "p"', f'backend = "{backend}"', *lines])


def settings_of(backend: str, *words: str) -> dict[str, Any]:
    return pool_command(backend).make_context(backend, [*words]).params


def test_a_pool_is_what_the_command_of_its_backend_makes_of_the_same_options() -> None:
    file = parse(GOOD, PATH)
    of_all = ["--server", "http://127.0.0.1:9", "--search", ".tag=x", "--search", "name=a b"]
    of_all += ["--metrics-port", "0", "--worker-idle-seconds", "300"]
    campus, spot = file.pools
    assert campus.settings == settings_of(
        "slurm", *of_all, "--pool", "campus", "--max", "20", "--cpus", "8", "--partition", "batch",
        "--no-prefilter", "--patience-seconds", "300",
    )  # fmt: skip
    assert spot.settings == settings_of(
        "aws-batch", *of_all, "--pool", "spot", "--cpus", "2", "--image", "a/b:c",
        "--job-queue=-spot=1", "--price-per-hour", "0.12", "--budget-per-hour", "5",
    )  # fmt: skip
    assert (file.budget.per_hour, file.budget.per_day, file.budget.per_month) == (10, 100, None)
    assert file.budget.soft_fraction == 0.8


def test_every_option_of_every_backend_may_stand_in_a_file_and_says_where_it_stood() -> None:
    for entry in registry.OURS:
        command = pool_command(entry.name)
        written, keys = [], {}
        for option in command.params:
            key = option.opts[0].lstrip("-")
            value = sample(option)
            if value is None or option.name in ("pool", "once", "plan", "dry_run", "output"):
                continue
            keys[option.name] = key
            written.append((option.name, f"{key} = {value}"))
        of_all = {o.name for o in set_level()}
        text = "\n".join(line for name, line in written if name in of_all)
        text += "\n" + pool(
            *(line for name, line in written if name not in of_all), backend=entry.name
        )
        file = parse(text, PATH)
        for name, key in keys.items():
            line = file.pools[0].origins[name or ""].line
            assert line is not None, (entry.name, key)
            assert text.splitlines()[line - 1].startswith(f"{key} = ")


def set_level() -> list[click.Option]:
    from manager.options import connection_options, set_options

    return [*connection_options(), *set_options()]


def sample(option: click.Parameter) -> str | None:
    """A value that the option takes, in TOML; None for what is said on a command line alone."""
    assert isinstance(option, click.Option)
    if option.name in ("verbose", "temp_session"):
        return None
    if option.is_flag:
        return "true"
    if isinstance(option.type, click.Choice):
        return f'"{option.type.choices[0]}"'
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low = option.type.min or 0
        high = low + 1 if option.type.max is None else min(low + 1, option.type.max)
        return str(int(high) if isinstance(option.type, click.IntRange) else float(high))
    special = {"server": '"http://x"', "worker_max_work_dir_size": '"10g"', "time": '"1-0"'}
    if option.multiple:
        return '["x"]'
    return special.get(option.name or "", '"x"')


def test_a_value_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    text = GOOD + pool('region = "r"', backend="gcp-batch")
    file = parse("sleep-time = 3\n" + text, PATH, {"sleep-time": 2.0, "search": ("x", "y")})
    assert (file.pools[0].settings["sleep_time"], file.pools[0].settings["search"]) == (
        2,
        ("x", "y"),
    )
    origins = {name: o.text("f") for name, o in file.pools[2].origins.items()}
    assert origins["project"] == "environment variable GOOGLE_CLOUD_PROJECT"
    assert origins["region"] == "f:33"
    assert origins["image"] == "f:12 [defaults]"
    assert origins["server"] == "f:2"
    assert origins["sleep_time"] == "command line"
    assert origins["zones"] == "default"
    assert file.budget_lines == {"per-hour": 7, "per-day": 8}


def test_what_the_file_says_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of the environment")
    text = pool('project = "of the file"', 'region = "r"', 'image = "i"', backend="gcp-batch")
    assert parse(text, PATH).pools[0].settings["project"] == "of the file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: pools: there is none: write [[pools]], and under it name"),
        ("pools = 3", "1: pools: 3 is not a list"),
        (pool("budget-per-day = 1"), "1: pools[0]: a budget of a pool needs --price-per-hour"),
        ('[pools]\nname = "p"', "1: pools: is one table: write [[pools]]"),
        ("pools = []", "1: pools: there is none"),
        ("pools = [1]", "1: pools[0]: 1 is not a table"),
        ("a = [", "1: this is not TOML: Invalid"),
        ("\n\nx = = 1", "3: this is not TOML: Invalid value"),
        ("a = 1\na = 2", "2: this is not TOML: Cannot overwrite a value"),
        ("defaults = 1\n" + pool(), "1: defaults: 1 is not a table"),
        ("[[pools]]", "1: pools[0]: backend is missing: write backend = one of local-process"),
        ('[[pools]]\nbackend = "local-process"', "1: pools[0].name: is missing: give the pool"),
        (pool(backend="slrum"), "3: pools[0].backend: 'slrum' is none of local-process"),
        (pool(backend="slrum"), "gcp-batch: did you mean slurm?"),
        (pool("backends = 3"), "4: pools[0].backends: is no such key: did you mean backend?"),
        (pool("max-worker = 3"), "4: pools[0].max-worker: is no such key: did you mean"),
        (pool("max_workers = 3"), "4: pools[0].max_workers: is no such key: write max-workers"),
        (pool("max = 3"), "4: pools[0].max: is no such key: write max-workers"),
        (pool('partition = "x"'), "4: pools[0].partition: is no option of local-process, but"),
        (pool("sleep-time = 3"), "4: pools[0].sleep-time: concerns all pools: write it above"),
        (pool("once = true"), "4: pools[0].once: is said on the command line alone"),
        ("verbose = true\n" + pool(), "1: verbose: is said on the command line alone"),
        ("max-workers = 3\n" + pool(), "1: max-workers: concerns one pool: write it"),
        ("sleep_time = 3\n" + pool(), "1: sleep_time: is no such key: write sleep-time"),
        ("[default]\n" + pool(), "1: default: is no such key: did you mean defaults?"),
        ("[budget]\nper-year = 3\n" + pool(), "2: budget.per-year: is no such key: did you mean"),
        ("[budget]\nper-day = -1\n" + pool(), "2: budget.per-day: -1 is less than 0"),
        ("[budget]\nsoft-fraction = 0\n" + pool(), "2: budget.soft-fraction: 0 is not more than 0"),
        ("[budget]\nper-day = inf\n" + pool(), "2: budget.per-day: inf is no number"),
        ('[defaults]\nname = "x"\n' + pool(), "2: defaults.name: is each pool's own"),
        ("[defaults]\nsleep-time = 1\n" + pool(), "2: defaults.sleep-time: concerns all pools"),
        ("[defaults]\nmax-workers = -1\n" + pool(), "2: defaults.max-workers: -1 is less than 0"),
        ("[defaults]\nplatform = 'x'\n" + pool(), "2: defaults.platform: 'x' is none of auto, ec2"),
        (pool('max-workers = "3"'), "4: pools[0].max-workers: '3' is not a whole number"),
        (pool("max-workers = 3.5"), "4: pools[0].max-workers: 3.5 is not a whole number"),
        (pool("max-workers = true"), "4: pools[0].max-workers: True is not a whole number"),
        (pool("price-per-hour = '1'"), "4: pools[0].price-per-hour: '1' is not a number"),
        (pool("price-per-hour = nan"), "4: pools[0].price-per-hour: nan is no number to reckon"),
        (pool("no-prefilter = 1"), "4: pools[0].no-prefilter: 1 is neither true nor false"),
        (pool("worker-tag = 1"), "4: pools[0].worker-tag: 1 is not text: put it in quotes"),
        (pool("worker-tag = 'a_b'"), "4: pools[0].worker-tag: 'a_b' is not a tag"),
        (pool("worker-max-work-dir-size = '2x'"), "4: pools[0].worker-max-work-dir-size: '2x'"),
        (pool("worker-tag-exclusive = true"), "4: pools[0].worker-tag-exclusive: --w"),
        (pool("min-workers = 11"), "4: pools[0].min-workers: --min-workers 11 is"),
        ("[defaults]\nmax-workers = 0\n" + pool(), "2: defaults.max-workers: --min-workers 1"),
        (pool("worker-executable = ''"), "4: pools[0].worker-executable: --worker-executable ''"),
        ("server = 'localhost'\n" + pool(), "1: server: 'localhost' is not an address"),
        ("search = 'x'\n" + pool(), "1: search: 'x' is not a list: write it in [ ]"),
        ("search = [1]\n" + pool(), "1: search[0]: 1 is not text"),
        ("log-format = 'xml'\n" + pool(), "1: log-format: 'xml' is none of text, json"),
        (pool("time = 'x'", backend="slurm"), "4: pools[0].time: 'x' is not a time"),
        (pool(backend="local-docker"), "1: pools[0].image: is missing: write image"),
        (pool("image = 'i'", "region = 'r'", backend="gcp-batch"), "Missing option '--project'"),
        (pool() + "\n" + pool(), "5: pools[1].name: 'p' is another pool's name, too (line 2)"),
        (pool().replace('"p"', '"a b"'), "2: pools[0].name: 'a b' is not a name for a pool"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_by_line_and_key(text: str, said: str) -> None:
    [problem] = problems(text)
    assert said in problem
    assert problem.startswith(f"{PATH}:")


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_lines() -> None:
    text = "max = 1\n" + pool("cpus = 0", "gpus = 'x'") + "\n" + pool("memory-mb = 0")
    assert [problem.split(": ")[:2] for problem in problems(text)] == [
        ["pools.toml:1", "max"],
        ["pools.toml:5", "pools[0].cpus"],
        ["pools.toml:6", "pools[0].gpus"],
        ["pools.toml:8", "pools[1].name"],
        ["pools.toml:10", "pools[1].memory-mb"],
    ]


def test_a_wrong_default_of_several_pools_is_said_once() -> None:
    text = "[defaults]\ncpus = 0\n" + pool() + "\n" + pool().replace('"p"', '"q"')
    assert problems(text) == ["pools.toml:2: defaults.cpus: 0 is less than 1: raise it"]


def test_a_default_that_is_no_option_of_some_backend_is_none_of_its_pools() -> None:
    text = "[defaults]\nimage = 'i'\n" + pool() + "\n"
    text += pool(backend="aws-batch").replace('"p"', '"q"')
    first, second = parse(text, PATH).pools
    assert "image" not in first.settings
    assert second.settings["image"] == "i"


def test_a_secret_may_only_stand_in_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    secret = "c2VjcmV0c2VjcmV0"
    text = pool(f'account-key = "{secret}"', "job-id = 'j'", "image = 'i'",
                "service-url = 'https://x'", backend="azure-batch")  # fmt: skip
    path = tmp_path / "pools.toml"
    path.write_text(text)
    path.chmod(0o640)
    with pytest.raises(BadPoolsFile) as caught:
        load(path)
    assert "pools.toml:4: pools[0].account-key: is a secret, and others may read" in str(
        caught.value
    )
    assert f"chmod 600 {path}" in str(caught.value)
    assert secret not in str(caught.value)
    path.chmod(0o600)
    assert load(path).pools[0].settings["account_key"] == secret


def test_no_message_repeats_a_secret() -> None:
    [problem] = problems(pool("account-key = 8675309", "job-id = 'j'", "image = 'i'",
                              "service-url = 'https://x'", backend="azure-batch"))  # fmt: skip
    assert "account-key: is not text" in problem
    assert "8675309" not in problem


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 20_000, "a = " + "[" * 5_000 + "]" * 5_000, ".".join("a" * 3_000) + "=1"],
)
def test_what_is_too_deep_is_said_as_any_other_mistake(text: str) -> None:
    with pytest.raises(BadPoolsFile, match=r"pools\.toml has lists or tables too deep"):
        parse(text, PATH)


def test_what_is_no_readable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# fine\n# caf\xe9\n")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1024**2 + 1))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, said in [
        (tmp_path / "none.toml", "cannot be read: No such file"),
        (tmp_path, "is a directory: give a file such as pools.toml"),
        (pipe, "is not a file"),
        (large, "is too large"),
        (latin, f"{latin}:2: this is not UTF-8"),
    ]:
        with pytest.raises(BadPoolsFile) as caught:
            load(path)
        assert said in str(caught.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pools.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert len(load(path).pools) == 2


def test_a_backend_of_another_package_that_is_broken_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from manager.pools_file import model

    def load_entry(name: str) -> registry.BackendModule:
        if name == "slurm":
            raise registry.BrokenBackend("broken")
        return original(name)

    original = registry.load
    monkeypatch.setattr(registry, "load", load_entry)
    found = model.grammar_of(registry.OURS)
    assert "slurm" not in found.pools
    assert "aws-batch" in found.pools
    monkeypatch.setattr("manager.pools_file.reading.grammar", lambda: found)
    assert parse(pool(), PATH).pools
    assert problems(pool(backend="slurm")) == ["pools.toml:3: pools[0].backend: broken"]


def test_what_a_backend_does_not_take_is_blamed_on_the_option_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_MANAGER_TOKEN", "t")
    path = tmp_path / "pools.toml"
    path.write_text(GOOD.replace('"-spot=1"', '""').replace('"a/b:c"', '"a b"'))
    assert main(["run", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"worker-manager: {path}:11: defaults.image: --image 'a b' cannot be used: give a "
        "reference such as HOST/NAME:TAG"
    ]


def test_the_commands_say_every_problem_in_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pools.toml"
    path.write_text(pool("cpus = 0", "gpus = -1"))
    for words in (["run"], ["plan"], ["config"], ["run", "--once"]):
        assert main([*words, str(path)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[:3] for line in said] == [
            ["worker-manager", f"{path}:4", "pools[0].cpus"],
            ["worker-manager", f"{path}:5", "pools[0].gpus"],
        ]


def whole(file: PoolsFile) -> list[Any]:
    return [(pool.name, pool.backend_name, pool.settings) for pool in file.pools]


def test_what_config_prints_is_a_file_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pools.toml"
    path.write_text(GOOD)
    assert main(["config", str(path)]) == 0
    again = parse(capsys.readouterr().out, PATH)
    home = {"home": str(tmp_path / "home")}
    assert whole(again) == [
        (name, backend, {**settings, **home}) for name, backend, settings in whole(load(path))
    ]
    assert again.budget == load(path).budget
