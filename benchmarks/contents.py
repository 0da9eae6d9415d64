"""A bundle of files as others see it: a worker that fetches it, beside `curl | tar xz`."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.stand import Stand
from bundles.archive import pack

BLOCK_BYTES = 8 * 1024**2
LOOK_SECONDS = 0.005


def large_tree(root: Path) -> None:
    """1 GiB in 64 files, each half noise and half words."""
    words = [random.randbytes(4).hex().encode() for _ in range(5000)]
    text = b" ".join(random.choices(words, k=BLOCK_BYTES // 9)).ljust(BLOCK_BYTES)
    root.mkdir()
    for number in range(64):
        (root / f"part-{number}").write_bytes(os.urandom(BLOCK_BYTES) + text)


def many_files(root: Path) -> None:
    """10,000 files of 3 kB in 100 directories."""
    for number in range(10_000):
        directory = root / f"d{number // 100}"
        directory.mkdir(parents=True, exist_ok=True)
        line = f"line of file {number}\n".encode() * 75
        (directory / f"f{number}").write_bytes(random.randbytes(1500) + line)


def fetch_seconds(stand: Stand, tree: Path, times: int) -> tuple[float, float]:
    """Medians, by turns so that a noisy moment hits both: a worker that has nothing yet, from the
    submission of a run to the tree in the worker's cache; and `curl | tar xz` of that bundle."""
    metadata = {"bundle_type": "dataset", "metadata": {"name": tree.name}}
    [bundle] = stand.client.create([metadata], wait_for_upload=True)
    stand.client.upload(bundle.uuid, pack(tree), filename="tree.tar.gz", finalize=True)
    address = f"{stand.url}/rest/bundles/{bundle.uuid}/contents/blob/"
    curl = f"curl --silent --fail -H @{stand.path}/header '{address}' | tar xz"
    token = stand.home.token_path.read_text().strip()
    (stand.path / "header").write_text(f"Authorization: Bearer {token}\n")
    ours, theirs = [], []
    for number in range(times):
        into = stand.path / f"{tree.name}-{number}"
        into.mkdir()
        os.sync()
        begin = time.perf_counter()
        subprocess.run(["bash", "-c", f"set -o pipefail; {curl}"], cwd=into, check=True)
        theirs.append(time.perf_counter() - begin)
        worker = stand.start_worker()
        stand.drain(["true"])
        os.sync()  # what was written before is not what is measured
        after = stand.client.changes(None).cursor
        begin = time.perf_counter()
        uuids = stand.submit(
            ["true"], dependencies=[{"child_path": "d", "parent_uuid": bundle.uuid}]
        )
        # Not until the run is running: the server says that with a commit, for which ext4 first
        # writes all that was unpacked, and nobody waits for that with tar.
        [directory] = stand.path.glob("worker-*/dependencies/ready")
        while not (directory / bundle.uuid).exists():
            time.sleep(LOOK_SECONDS)
        ours.append(time.perf_counter() - begin)
        stand.wait_for(uuids, after, frozenset({"ready"}))
        stand.stop(worker)
        directory.parent.rename(stand.path / f"cache-{number}-{tree.name}")
    return statistics.median(ours), statistics.median(theirs)
