"""podman's Docker-compatible service of the tests' own, with storage and networks of its own."""

from __future__ import annotations

import contextlib

import psutil
from docker_engine import DockerEngine


class PodmanEngine(DockerEngine):
    """`podman system service`. ``env`` makes our workers find it; Docker's client drives it."""

    runtime = "podman"

    def __init__(self) -> None:
        super().__init__()
        self.env = {"CONTAINER_HOST": f"unix://{self.socket}"}
        self.client_env = {"DOCKER_HOST": f"unix://{self.socket}"}

    def _command_line(self) -> list[str]:
        return [
            *("podman", "--root", str(self.directory / "data")),
            *("--runroot", str(self.directory / "run")),
            *("--network-config-dir", str(self.directory / "networks")),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "file"),
            *("system", "service", "--time", "0", f"unix://{self.socket}"),
        ]

    def _end_orphans(self) -> None:
        """Containers' monitors, of which each knows its storage, and what they watch; mounts."""
        for monitor in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if monitor.name() == "conmon" and str(self.directory) in " ".join(
                    monitor.cmdline()
                ):
                    for process in [*monitor.children(recursive=True), monitor]:
                        process.kill()
        super()._end_orphans()
