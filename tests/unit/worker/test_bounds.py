from __future__ import annotations

from collections.abc import Mapping

import pytest

from worker.bounds import MIB, Bounds, group_bounds, slurm_bounds, visible_gpus

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
LEGACY = """\
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
"""


def bounds(files: Mapping[str, str]) -> Bounds:
    return group_bounds(files.get)


def test_the_tightest_of_all_groups_around_us_holds_in_version_2() -> None:
    root = "/sys/fs/cgroup"
    found = bounds(
        {
            "/proc/self/mountinfo": UNIFIED,
            "/proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            f"{root}/slurm/job_7/step_0/cpu.max": "max 100000\n",
            f"{root}/slurm/job_7/step_0/memory.max": "max\n",
            f"{root}/slurm/job_7/cpu.max": "250000 100000\n",
            f"{root}/slurm/job_7/memory.max": "1073741824\n",
            f"{root}/slurm/cpu.max": "400000 100000\n",
            f"{root}/slurm/memory.max": "2147483648\n",
        }
    )
    assert found == Bounds(2.5, 1024 * MIB)


def test_each_controller_has_its_own_groups_in_version_1() -> None:
    found = bounds(
        {
            "/proc/self/mountinfo": LEGACY,
            "/proc/self/cgroup": "11:cpu,cpuacct:/a/b\n9:memory:/m\n1:name=systemd:/a\n0::/x\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/memory/m/memory.limit_in_bytes": "9223372036854771712\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
            "/sys/fs/cgroup/systemd/a/memory.limit_in_bytes": "1\n",
        }
    )
    assert found == Bounds(0.5, 512 * MIB)


def test_a_container_sees_its_own_group_at_the_top_of_the_mount() -> None:
    mount = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup cgroup ro,memory"
    found = bounds(
        {
            "/proc/self/mountinfo": mount,
            "/proc/self/cgroup": "4:memory:/docker/abc/worker\n",
            "/sys/fs/cgroup/worker/memory.limit_in_bytes": "3145728\n",
            "/sys/fs/cgroup/memory.limit_in_bytes": "2097152\n",
        }
    )
    assert found == Bounds(memory_bytes=2 * MIB)
    # With a group namespace of its own the name begins anew, or leads out of it.
    for name in ("0::/\n", "0::/../../elsewhere\n"):
        files = {
            "/proc/self/mountinfo": UNIFIED,
            "/proc/self/cgroup": name,
            "/sys/fs/cgroup/memory.max": "1048576\n",
        }
        assert bounds(files) == Bounds(memory_bytes=MIB)


def test_without_groups_there_are_no_bounds() -> None:
    assert bounds({}) == Bounds()
    assert bounds({"/proc/self/mountinfo": "nonsense\n", "/proc/self/cgroup": "::\n"}) == Bounds()


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "2048"}, Bounds(4, 2048 * MIB)),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "100"}, Bounds(4, 400 * MIB)),
        ({"SLURM_CPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "0"}, Bounds(2)),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, Bounds(gpus=("2", "3"))),
        ({"SLURM_GPUS_ON_NODE": "1"}, Bounds(gpus=("0",))),
        ({}, Bounds()),
    ],
)
def test_a_slurm_allocation_is_a_bound(variables: dict[str, str], found: Bounds) -> None:
    assert slurm_bounds({"SLURM_JOB_ID": "1", **variables}) == found
    assert slurm_bounds(variables) == Bounds()


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("1,0", ("1", "0")), ("GPU-8932f937", ("GPU-8932f937",)), ("", ()), ("NoDevFiles", ())],
)
def test_visible_gpus_go_before_those_of_slurm(text: str, gpus: tuple[str, ...]) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": text, "SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "5"}
    assert visible_gpus(environ).within(slurm_bounds(environ)).gpus == gpus
