"""Pods of deploy/kubernetes as containers of the tests' engine: what a kubelet makes of a manifest.

Same user and groups, root file system, capabilities, limit of memory, command and mounts, and their
owners; the container is its own init, and starts again when it ends. What keeps the cluster
together (services, policies, claims) is not there: a name in the engine's network stands for a
service, a directory for a claim.
"""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from docker_engine import DockerEngine
from worker_image import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
ANSWER_SECONDS = 30.0


def manifest(file: str, kind: str) -> dict[str, Any]:
    """The only one of its kind in a file."""
    documents = yaml.safe_load_all((MANIFESTS / file).read_text())
    (found,) = (document for document in documents if document["kind"] == kind)
    assert isinstance(found, dict)
    return found


class Pod:
    """The pod of a stateful set. ``files``: what config maps and secrets hold, by volume and file.
    ``patch``: a stateful set that says otherwise of the container. ``close`` removes it."""

    def __init__(
        self,
        engine: DockerEngine,
        directory: Path,
        stateful_set: Mapping[str, Any],
        *,
        files: Mapping[str, Mapping[str, str]] | None = None,
        patch: Mapping[str, Any] | None = None,
    ) -> None:
        self.name: str = stateful_set["metadata"]["name"]
        self._engine = engine
        self._directory = directory / self.name
        self._spec = stateful_set["spec"]["template"]["spec"]
        (self._container,) = self._spec["containers"]
        if patch is not None:
            (patched,) = patch["spec"]["template"]["spec"]["containers"]
            self._container = self._container | patched
        self.arguments: list[str] = self._container["args"]
        self._group: int = self._spec["securityContext"]["fsGroup"]
        claims = stateful_set["spec"]["volumeClaimTemplates"]
        self._volumes = [*self._spec["volumes"], *(claim["metadata"] for claim in claims)]
        self._files = files or {}
        self._versions = 0

    def start(self, image: str, network: str, environment: Mapping[str, str]) -> None:
        """``environment``: what its variables get out of secrets, and what a user adds."""
        security, container = self._spec["securityContext"], self._container
        context = container["securityContext"]
        variables = {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
        awaited = {v["name"] for v in container.get("env", [])} - variables.keys()
        assert awaited <= environment.keys()
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        limit = container["resources"]["limits"]["memory"].removesuffix("i").lower()
        self._engine.command(
            *("run", "--detach", "--name", self.name, "--network", network),
            "--restart=always",  # and so often, as long as its database is not there
            *("--user", f"{security['runAsUser']}:{security['runAsGroup']}"),
            *("--group-add", str(self._group), "--read-only", "--memory", limit),
            *("--security-opt", "no-new-privileges"),
            *(f"--cap-drop={name}" for name in context["capabilities"]["drop"]),
            *(f"--env={name}={value}" for name, value in (variables | dict(environment)).items()),
            *(f"--entrypoint={word}" for word in container.get("command", [])),
            *self._mounts(),
            *(image, *self.arguments),
        )

    def _mounts(self) -> list[str]:
        options = []
        for mount in self._container["volumeMounts"]:
            (volume,) = (v for v in self._volumes if v["name"] == mount["name"])
            place = self._directory / mount["name"]
            if "configMap" in volume or "secret" in volume:
                self.put(mount["name"], self._files[mount["name"]])
            else:
                place.mkdir(parents=True)
                os.chown(place, 0, self._group)
                place.chmod(0o2777 if "emptyDir" in volume else 0o2775)
            mode = "ro" if mount.get("readOnly") else "rw"
            options += ["--volume", f"{place}:{mount['mountPath']}:{mode}"]
        return options

    def put(self, volume: str, files: Mapping[str, str]) -> None:
        """What a config map or a secret holds from now on, all of it at once."""
        (source,) = (v for v in self._volumes if v["name"] == volume)
        mode = source.get("secret", {}).get("defaultMode", 0o644)
        place = self._directory / volume
        self._versions += 1
        version = place / f"..{self._versions}"
        version.mkdir(parents=True)
        for name, text in files.items():
            (version / name).write_text(text)
            (version / name).chmod(mode)
            os.chown(version / name, 0, self._group)
            if not (place / name).is_symlink():
                (place / name).symlink_to(f"..data/{name}")
        (place / "..new").symlink_to(version.name)
        (place / "..new").rename(place / "..data")

    def answers(self, probe: str) -> bool:
        """Whether a probe of its manifest is content."""
        asked = self._container[probe]["httpGet"]
        (port,) = (
            p["containerPort"] for p in self._container["ports"] if p["name"] == asked["port"]
        )
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = self._engine.command("inspect", "--format", form, self.name).strip()
        try:
            url = f"http://{address}:{port}{asked['path']}"
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def execute(self, *command: str) -> str:
        return self._engine.command("exec", self.name, *command)

    def log(self) -> str:
        return subprocess.run(
            ["docker", "logs", self.name],
            env=os.environ | self._engine.client_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def stop(self) -> int:
        """As a kubelet stops it; its exit code."""
        seconds = self._spec["terminationGracePeriodSeconds"]
        self._engine.command("stop", "--time", str(seconds), self.name)
        return int(self._engine.command("wait", self.name))

    def close(self) -> None:
        if self._engine.command("ps", "--all", "--quiet", "--filter", f"name=^{self.name}$"):
            print(self.log())  # for who looks why a test failed
            self._engine.command("rm", "--force", self.name)
