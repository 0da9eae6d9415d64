"""What containers need that can be told without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.images import _image, _used_at
from worker.pulls import Image
from worker.registry import Reference, parse_reference
from worker.runtimes.base import Job, mount_name
from worker.runtimes.docker import _Container, _take_sample, gpu_request

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("ubuntu", Reference("docker.io", "library/ubuntu", "latest")),
        ("codalab/default-cpu:1.2", Reference("docker.io", "codalab/default-cpu", "1.2")),
        ("127.0.0.1:5000/tool", Reference("127.0.0.1:5000", "tool", "latest")),
        ("localhost:5000/a/b:x", Reference("localhost:5000", "a/b", "x")),
        (f"ghcr.io/a/b@{DIGEST}", Reference("ghcr.io", "a/b", DIGEST)),
        (f"ghcr.io/a/b:tag@{DIGEST}", Reference("ghcr.io", "a/b", DIGEST)),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert reference.is_digest == ("@" in text)


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "a:", "host:80/", "a@sha256:short", "../a"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no name|no digest|no proper tag"):
        parse_reference(text)


def test_the_digest_of_the_repository_that_was_asked_for_is_recorded() -> None:
    found = {"Id": "sha256:1", "RepoDigests": [f"other@{DIGEST}", f"h:5000/tool@{DIGEST}"]}
    assert _image("h:5000/tool:1", found) == Image(
        "h:5000/tool:1", "sha256:1", f"h:5000/tool@{DIGEST}"
    )
    assert _image("built:1", {"Id": "sha256:1", "RepoDigests": []}).digest == ""


def test_the_mark_of_an_image_says_when_it_was_used() -> None:
    assert _used_at("worker-manager.cache/image:0123456789abcdef.1795262460") == 1795262460
    assert _used_at("worker-manager.cache/image:by-hand") == 0


def test_dependencies_have_names_of_one_level_that_differ() -> None:
    paths = ["a", "a/b", "a%2Fb", ".", "..", "with space"]
    names = [mount_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert all("/" not in name and name != "." for name in names)
    assert names[0] == "a"


def container() -> _Container:
    job = Job("k", "0x1", "true", Path("/p"), Path("/p/files"))
    return _Container(job, "name")


def test_usage_is_read_as_cgroup_v1_tells_it() -> None:
    made = container()
    stats = {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": 3_000_000_000,
                "usage_in_usermode": 2_000_000_000,
                "usage_in_kernelmode": 1_000_000_000,
            }
        },
        "memory_stats": {
            "usage": 1000,
            "max_usage": 5000,
            "stats": {"total_inactive_file": 400, "inactive_file": 1},
        },
    }
    _take_sample(made, stats, 10.0)
    assert (made.usage.memory_bytes, made.peak_bytes) == (600, 5000)
    assert (made.usage.user_seconds, made.usage.system_seconds) == (2.0, 1.0)
    stats["cpu_stats"]["cpu_usage"]["total_usage"] = 4_000_000_000
    _take_sample(made, stats, 12.0)
    assert made.usage.cpus == 0.5


def test_usage_is_read_as_cgroup_v2_tells_it_which_keeps_no_peak() -> None:
    made = container()
    for usage in (3000, 1000):
        stats = {
            "cpu_stats": {"cpu_usage": {"total_usage": 1}},
            "memory_stats": {"usage": usage, "stats": {"inactive_file": 500}},
        }
        _take_sample(made, stats, 1.0)
    assert (made.usage.memory_bytes, made.peak_bytes) == (500, 2500)


def test_a_container_that_has_ended_meanwhile_keeps_its_last_figures() -> None:
    made = container()
    _take_sample(made, {"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}}, 1.0)
    assert made.sampled == 0.0


def test_gpus_are_asked_for_as_the_engine_knows_them() -> None:
    assert gpu_request(["0", "2"], is_podman=False) == {
        "Driver": "",
        "Count": 0,
        "DeviceIDs": ["0", "2"],
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    assert gpu_request(["0", "2"], is_podman=True) == {
        "Driver": "cdi",
        "Count": 0,
        "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=2"],
        "Capabilities": [["gpu"]],
        "Options": {},
    }
