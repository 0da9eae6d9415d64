"""Runs bundles in containers of Docker, or of podman, which speaks the same API.

A container is made and started in a thread, after the worker has its name on disk; the name is
the run's, so that it is found again by whoever comes next. Ends come from one stream of events for
the whole worker; when that breaks, whatever it may have missed is asked for once it is back.
Images are the business of worker.images.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from docker.errors import APIError, DockerException, NotFound
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from worker.backoff import Backoff
from worker.images import Images
from worker.limits import Usage
from worker.loop import Loop, Outcome, Pool
from worker.pulls import Image, ImageFailed
from worker.runtimes import proc
from worker.runtimes.base import (
    Address,
    Attachment,
    CannotStart,
    End,
    Ended,
    Failed,
    Gone,
    Job,
    Prepared,
    mount_name,
)
from worker.runtimes.engine import SILENCE_SECONDS, Engine, Unanswered, explain, explain_start
from worker.runtimes.network import Network, NoNetwork

log = logging.getLogger(__name__)

WORKER_LABEL = "worker-manager.worker"
DIRECTORY_LABEL = "worker-manager.directory"
RUN_LABEL = "worker-manager.run"

DEFAULT_CPU_IMAGE = "codalab/default-cpu:latest"
DEFAULT_GPU_IMAGE = "codalab/default-gpu:latest"
"""What CodaLab runs bundles in that name no image."""

UUID = "CODALAB_BUNDLE_UUID"
PIDS = 4096
"""Processes and threads of one run: enough for any program, too few for a fork bomb."""
PODMAN_WITH_GPUS = (5, 4)
"""Elder ones take a request for GPUs over this API, and start the container without any
(podman's change 25171)."""
SHELL = "/bin/sh"
SCRIPT = (
    "shell=/bin/sh; [ -x /bin/bash ] && shell=/bin/bash; "
    'exec "$shell" -c "$1" </dev/null >stdout 2>stderr'
)

KILLED, TERMINATED, UNKNOWN_EXIT = 137, 143, 255
"""Exit codes that an engine which is going down, or comes up again, gives to what it ended."""
ENDING_SIGNALS = ("9", "15")
LONGEST_ARGUMENT_BYTES = 32 * resource.getpagesize()
"""With its end (`MAX_ARG_STRLEN` of execve(2)). What PID 1 says of longer ones nobody hears."""
NO_SHELL = (126, 127)
"""What PID 1 exits with when it cannot start the shell."""
ENGINE_PATIENCE_SECONDS = 60.0
"""How long a container that is to be removed waits for an engine that is away."""
CLOSE_SECONDS = 20.0
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
SAMPLE_SHARE = 20
"""Of the time, at most one part in so many goes into asking the engine for usage."""
IMAGE_LOSSES = 3
"""How often an image may vanish between its pull and the start of one run."""
NEAR_LIMIT = 0.95


@dataclass
class _Container:
    """A run's container, which may not be there yet, or any more."""

    job: Job
    name: str
    image: Image | None = None
    untouched: int | None = None
    """The `_last_change` of its directory before it was started, if that is known."""
    is_released: bool = False
    is_launching: bool = False
    has_run: bool = False
    """It was seen to run, so that its absence is no sign of its not having been started."""
    stop: bool | None = None
    """None: it may run on. False: it was asked to end. True: it was forced to."""
    is_killed_by_others: bool = False
    has_ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    looking: threading.Lock = field(default_factory=threading.Lock)
    is_told: bool = False
    """Its end was said, so that its name may be another's by now: that of the run's next start."""
    usage: Usage = field(default_factory=Usage)
    cpu_seconds: float = 0.0
    sampled: float = 0.0
    peak_bytes: int = 0


class DockerRuntime:
    """See worker.runtimes.base.Runtime for the promises.

    ``owner`` is the worker's own directory: with its id it says whose a container is.
    """

    def __init__(
        self,
        loop: Loop,
        ended: Ended,
        engine: Engine,
        *,
        worker_id: str,
        owner: Path,
        network_prefix: str,
        shared_memory_bytes: int,
        max_image_bytes: int | None = None,
        max_image_cache_bytes: int | None = None,
    ) -> None:
        self.name = "podman" if engine.is_podman else "docker"
        self._loop = loop
        self._ended = ended
        self._engine = engine
        self._labels = {WORKER_LABEL: worker_id, DIRECTORY_LABEL: str(owner)}
        self._mark = hashlib.sha256(f"{worker_id}\0{owner}".encode()).hexdigest()[:8]
        self._shared_memory_bytes = shared_memory_bytes
        self._network = Network(engine, f"{network_prefix}_{self._mark}_ext", self._labels)
        self._images = Images(
            engine.another(),
            loop,
            max_image_bytes=max_image_bytes,
            max_cache_bytes=max_image_cache_bytes,
        )
        self._found: dict[str, Image] = {}
        self._asked: dict[str, tuple[str, Callable[[Image | ImageFailed], None]]] = {}
        self._unconnected: dict[str, Prepared] = {}
        """Whom to tell, by key, when there is a network."""
        self._network_status = ""
        self._lost_images: Counter[str] = Counter()
        self._containers: dict[str, _Container] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._networks = Pool(loop, "networks", 1)
        self._launches = Pool(loop, "launches", 4)
        self._stops = Pool(loop, "stops", 4)
        self._samples = Pool(loop, "usage", 1)
        self._is_sampling = False
        self._sample_at = 0.0
        self._removals = 0
        self._removed = threading.Condition()
        self._remove_pool = Pool(loop, "removals", 2)
        threading.Thread(target=self._watch, name="engine-events", daemon=True).start()

    # Before the start

    def dependency_paths(self, uuid: str) -> Path | None:
        return Path(f"/{uuid}_dependencies")

    def prepare(self, job: Job, done: Prepared) -> None:
        reference = job.image or (DEFAULT_GPU_IMAGE if job.gpus else DEFAULT_CPU_IMAGE)

        def found(result: Image | ImageFailed) -> None:
            self._asked.pop(job.key, None)
            if isinstance(result, ImageFailed):
                done(CannotStart(str(result)))
            else:
                self._found[job.key] = result
                self._connect(job, done)

        self._asked[job.key] = (reference, found)
        self._images.request(reference, found)

    def _connect(self, job: Job, done: Prepared) -> None:
        """Have a network before the start: an engine that has none left is no run's fault."""
        if not job.network or self._network.is_made:
            done(None)
            return
        is_first = not self._unconnected
        self._unconnected[job.key] = done
        if is_first:
            self._networks.submit(self._make_network, self._connected)

    def _make_network(self) -> None:
        """In a thread: try until there is one, or nobody waits for it any more."""
        for _ in self._tries():
            if not self._unconnected:
                return
            try:
                self._network.name()
                return
            except NoNetwork as error:
                status = f"Waiting for a network: {error}"
            except (DockerException, *Unanswered) as error:
                log.debug("no network: %s", error)
                status = "Waiting for the container engine"
            if status != self._network_status:
                log.warning("runs are held up: %s", status)
            self._network_status = status

    def _connected(self, outcome: Outcome[None]) -> None:
        self._network_status = ""
        waiting, self._unconnected = self._unconnected, {}
        error = outcome.error
        for done in waiting.values():
            done(CannotStart(f"It has no network: {error}") if error is not None else None)

    def withdraw(self, key: str) -> None:
        self._unconnected.pop(key, None)
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._images.withdraw(*asked)

    def status(self, key: str) -> str:
        if key in self._unconnected:
            return self._network_status
        asked = self._asked.get(key)
        return self._images.status(asked[0]) if asked is not None else ""

    # Start

    def start(self, job: Job) -> Mapping[str, Any]:
        image = self._found[job.key]
        if len(os.fsencode(job.command)) >= LONGEST_ARGUMENT_BYTES:
            raise CannotStart(f"The command cannot be started: {os.strerror(errno.E2BIG)}")
        if job.gpus and self._engine.is_podman and self._engine.release < PODMAN_WITH_GPUS:
            wanted = ".".join(map(str, PODMAN_WITH_GPUS))
            raise CannotStart(f"podman gives GPUs to containers as of {wanted}, and this is older")
        untouched = _last_change(job.directory)
        container = _Container(job, self._name(job.key), image, untouched)
        with self._lock:
            self._containers[job.key] = container
        return {
            "container": container.name,
            "image": image.digest or image.reference,
            "untouched": untouched,
        }

    def _name(self, key: str) -> str:
        return f"bundle_run_{key}_{self._mark}"

    def release(self, key: str) -> None:
        container = self._containers[key]
        container.is_released = container.is_launching = True
        self._launches.submit(partial(self._launch, container), self._noted("launch"))

    def _launch(self, container: _Container) -> None:
        """In a thread: make the container, and let it go unless it is to stop by now."""
        try:
            how = self._try_launch(container)
        except (*Unanswered, DockerException) as error:
            log.warning("the engine did not answer at the start of %s: %s", container.name, error)
            how = None
            container.is_launching = False
            self._settle(container)
        container.is_launching = False
        if how is not None:
            self._tell(container, End(how))

    def _try_launch(self, container: _Container) -> Failed | Gone | None:
        try:
            self._create(container)
        except NoNetwork:
            return Gone.HELD_BACK  # it is lost, and waited for anew
        except NotFound as error:
            return self._without_image(container, error)
        except APIError as error:
            return self._refused(container, error)
        with container.lock:
            goes = container.stop is None
        if goes:
            try:
                self._start(container)
            except (NotFound, NoNetwork):
                goes = False  # somebody removed it at once; it shall be made anew
            except APIError as error:
                return self._refused(container, error)
        if not goes:
            self._remove(container.name)
            return Gone.HELD_BACK
        self._runs(container)
        return None

    def _runs(self, container: _Container) -> None:
        """It was seen to run: see to its end."""
        with container.lock:
            is_new = not container.has_run
            container.has_run = True
            stop = container.stop
        if is_new and self._engine.is_podman:
            waiting = partial(self._await, container)
            threading.Thread(target=waiting, name="wait", daemon=True).start()
        if stop is not None:
            self._kill(container, force=stop)

    def _await(self, container: _Container) -> None:
        """In a thread of its own: podman's events do not tell every end."""
        engine = self._engine.another()
        for _ in self._tries():
            if container.has_ended:
                break
            try:
                code = int(engine.wait(container.name, timeout=int(SILENCE_SECONDS))["StatusCode"])
            except NotFound:
                self._settle(container)
                break
            except (DockerException, *Unanswered, KeyError) as error:
                log.debug("waiting for %s: %s", container.name, error)
                continue
            self._judge(container, code)
            break
        engine.close()

    def _without_image(self, container: _Container, error: APIError) -> Failed | Gone:
        assert container.image is not None
        reference = container.image.reference
        self._images.lose(reference)
        self._lost_images[container.job.key] += 1
        if self._lost_images[container.job.key] > IMAGE_LOSSES:
            return Failed(f"The image {reference} is removed as soon as it is pulled")
        log.warning("the image %s is gone, and is pulled again: %s", reference, explain(error))
        return Gone.HELD_BACK

    def _refused(self, container: _Container, error: APIError) -> Failed:
        with suppress(DockerException, *Unanswered):
            self._remove(container.name)
        return Failed(explain_start(error))

    def _create(self, container: _Container) -> None:
        job = container.job
        assert container.image is not None
        arguments: dict[str, Any] = {
            "image": container.image.id,
            "name": container.name,
            "entrypoint": [SHELL],
            "command": ["-c", SCRIPT, SHELL, job.command],
            "working_dir": f"/{job.uuid}",
            "user": self._user(job.directory),
            "environment": self._environment(job),
            "labels": {**self._labels, RUN_LABEL: job.key},
            "host_config": self._host_config(job),
            "network_disabled": not job.network,
        }
        deadline = time.monotonic() + ENGINE_PATIENCE_SECONDS
        for _ in self._tries():
            try:
                self._engine.create_container(**arguments)
                return
            except APIError as error:
                if error.status_code != 409 or time.monotonic() > deadline:
                    raise
            # Left by a start that was cut off, of this very run: nothing else has its name. Its
            # removal may be under way, of which nobody tells the end.
            self._remove(container.name)

    def _start(self, container: _Container) -> None:
        try:
            self._engine.start(container.name)
        except APIError as error:
            if "network" not in explain(error) or not container.job.network:
                raise
            # Networks without containers are what `docker network prune` removes.
            self._network.lose()
            self._remove(container.name)
            self._create(container)
            self._engine.start(container.name)

    def _user(self, directory: Path) -> str:
        if self._engine.is_rootless:
            return "0:0"  # which is, outside, whoever the engine runs as
        status = directory.stat()
        return f"{status.st_uid}:{status.st_gid}"

    def _environment(self, job: Job) -> dict[str, str]:
        environment = {
            "HOME": f"/{job.uuid}",
            "CODALAB": "true",
            UUID: job.uuid,
            # Where the engine gives all GPUs to everybody, one who asked for none has none.
            "NVIDIA_VISIBLE_DEVICES": ",".join(job.gpus) if job.gpus else "void",
        }
        if job.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(n) for n in range(len(job.gpus)))
        return environment

    def _host_config(self, job: Job) -> Any:
        root = self.dependency_paths(job.uuid)
        # Not in the short form, in which a colon in a path would mean something.
        mounts = [Mount(f"/{job.uuid}", str(job.directory), type="bind")]
        mounts += [
            Mount(f"{root}/{mount_name(path)}", str(content), type="bind", read_only=True)
            for path, content in job.contents.items()
        ]
        options: dict[str, Any] = {
            "mounts": mounts,
            "init": True,  # a PID 1 that heeds signals and reaps orphans
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "pids_limit": PIDS,
            "shm_size": self._shared_memory_bytes,
            # stdout and stderr are files of the run; the engine is to keep no second copy.
            "log_config": LogConfig(type="none"),
            "network_mode": self._network.name() if job.network else "none",
        }
        if job.memory_bytes:
            options |= {"mem_limit": job.memory_bytes, "memswap_limit": job.memory_bytes}
        if job.cpus:
            options["cpuset_cpus"] = ",".join(str(cpu) for cpu in sorted(job.cpus))
        if job.gpus:
            options["device_requests"] = [gpu_request(job.gpus, is_podman=self._engine.is_podman)]
        if self._engine.is_podman:
            # It would raise these to defaults of its own, which it may not be allowed to.
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            options["ulimits"] = [
                Ulimit(name="nofile", soft=soft, hard=hard),
                Ulimit(name="nproc", soft=PIDS, hard=PIDS),
            ]
        return self._engine.create_host_config(**options)

    # The end

    def attach(self, job: Job, process: Mapping[str, Any]) -> Attachment:
        container = _Container(
            job, str(process["container"]), untouched=process.get("untouched"), is_released=True
        )
        with self._lock:
            self._containers[job.key] = container
        self._launches.submit(partial(self._settle, container), self._noted("look"))
        return Attachment.ALIVE

    def _watch(self) -> None:
        """In a thread of its own: tell the ends of containers as they come."""
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        engine = self._engine.another()
        filters = {
            "type": ["container"],
            "event": ["die", "kill", "destroy"],
            "label": [f"{name}={value}" for name, value in self._labels.items()],
        }
        is_first = True
        while not self._closed.is_set():
            try:
                stream = engine.events(filters=filters, decode=True)
                backoff.reset()
                if not is_first:
                    log.info("the engine answers again")
                    self._images.refresh()
                    self._catch_up()
                is_first = False
                for event in stream:
                    self._heard(event)
            except (DockerException, *Unanswered, ValueError) as error:
                log.debug("the engine's events: %s", error)
            is_first = False
            # Nobody tells when an engine comes back: it is asked for.
            self._closed.wait(backoff.next_seconds())
        engine.close()

    def _catch_up(self) -> None:
        with self._lock:
            containers = list(self._containers.values())
        for container in containers:
            if container.is_released and not container.is_launching and not container.has_ended:
                self._settle(container)
        self._sweep(())

    def _heard(self, event: Mapping[str, Any]) -> None:
        attributes = event.get("Actor", {}).get("Attributes", {})
        with self._lock:
            container = self._containers.get(attributes.get(RUN_LABEL, ""))
        if container is None or container.has_ended:
            return
        match event.get("Action"):
            case "kill":
                if container.stop is None:
                    container.is_killed_by_others |= _ends_it(attributes)
            case "die":
                container.has_run = True
                code = int(attributes.get("exitCode", UNKNOWN_EXIT))
                if code == 0 and not container.is_killed_by_others:
                    self._tell(container, End(0))
                else:
                    judge = partial(self._judge, container, code)
                    self._stops.submit(judge, self._noted("end"))
            case "destroy":
                if not container.is_launching:
                    self._settle(container)

    def _judge(self, container: _Container, code: int) -> None:
        """Tell an end with an exit code that may be the command's, the engine's or the kernel's."""
        is_out_of_memory = False
        if code in NO_SHELL and not _has_begun(container):
            # PID 1, which said why, is heard by nobody.
            image = container.image.reference if container.image else container.job.image
            failed = Failed(f"The image {image} has no {SHELL}, which is to run the command")
            self._tell(container, End(failed))
            return
        with suppress(DockerException, *Unanswered):
            state = self._engine.inspect_container(container.name)["State"]
            is_out_of_memory = bool(state.get("OOMKilled"))
        self._tell_exit(container, code, is_out_of_memory, is_known=True)

    def _tell_exit(
        self, container: _Container, code: int, is_out_of_memory: bool, *, is_known: bool
    ) -> None:
        limit = container.job.memory_bytes
        if code == KILLED and limit and container.peak_bytes > NEAR_LIMIT * limit:
            is_out_of_memory = True
        was_stopped = container.stop is not None
        looks_foreign = code in (KILLED, TERMINATED, UNKNOWN_EXIT) and not is_known
        # A command that heeds the signal may end with any code, and have done half of its work.
        is_foreign = looks_foreign or container.is_killed_by_others
        if is_foreign and not was_stopped and not is_out_of_memory:
            # The engine went down, or somebody stopped it: not the command's doing.
            self._tell(container, End(Gone.UNKNOWN))
            return
        self._tell(
            container,
            End(
                code,
                container.usage.user_seconds,
                container.usage.system_seconds,
                is_out_of_memory and code != 0 and not was_stopped,
            ),
        )

    def _settle(self, container: _Container) -> None:
        """In a thread: find out what became of a container, however long the engine is away."""
        for _ in self._tries():
            try:
                with container.looking:
                    if not container.is_told:
                        self._look(container)
                return
            except (DockerException, *Unanswered) as error:
                log.debug("what became of %s: %s", container.name, error)

    def _look(self, container: _Container) -> None:
        try:
            state = self._engine.inspect_container(container.name)["State"]
        except NotFound:
            gone = Gone.UNKNOWN if container.has_run else Gone.HELD_BACK
            self._tell(container, End(gone))
            return
        status = state.get("Status")
        if status in ("created", "configured", "initialized"):
            self._remove(container.name)
            self._tell(container, End(Gone.HELD_BACK))
        elif state.get("Running") or status in ("running", "paused", "restarting"):
            self._runs(container)
        else:
            code = int(state.get("ExitCode", UNKNOWN_EXIT))
            if code == 0 and not _has_begun(container):
                # An engine that comes up ends what it finds, and it may not have begun.
                self._remove(container.name)
                self._tell(container, End(Gone.HELD_BACK))
                return
            if container.stop is None:
                container.is_killed_by_others |= self._was_ended(container.name)
            self._tell_exit(container, code, bool(state.get("OOMKilled")), is_known=False)

    def _was_ended(self, name: str) -> bool:
        """Whether a container, whose end nobody saw, was ended from outside: by its engine, when
        that came up again, or by hand. The engine knows its last few hundred events."""
        window: Any = {"since": 1, "until": f"{time.time():.3f}"}  # stubs know whole seconds only
        events = self._engine.events(
            **window,
            filters={"type": ["container"], "event": ["kill"], "container": [name]},
            decode=True,
        )
        return any(_ends_it(event.get("Actor", {}).get("Attributes", {})) for event in events)

    def _tell(self, container: _Container, end: End) -> None:
        container.is_told = True

        def tell() -> None:
            if container.has_ended or self._containers.get(container.job.key) is not container:
                return
            container.has_ended = True
            self._ended(container.job.key, end)

        self._loop.post(tell)

    def stop(self, key: str, *, force: bool) -> None:
        container = self._containers.get(key)
        if container is None or container.has_ended:
            return
        with container.lock:
            container.stop = force or bool(container.stop)
            has_run = container.has_run
        if has_run:
            self._stops.submit(partial(self._kill, container, force=force), self._noted("stop"))

    def _kill(self, container: _Container, *, force: bool) -> None:
        try:
            self._engine.kill(container.name, "SIGKILL" if force else "SIGTERM")
        except APIError as error:
            if error.status_code not in (404, 409):  # it ended meanwhile
                log.warning("%s cannot be ended: %s", container.name, explain(error))
        except Unanswered as error:
            log.warning("%s will be ended when the engine is back: %s", container.name, error)

    def end_all(self, key: str, place: Path) -> None:
        with self._lock:
            container = self._containers.get(key)
        name = container.name if container is not None else self._name(key)
        if container is not None and container.has_ended and container.has_run:
            # Nothing in it lives. What the engine keeps of it goes while the next run starts.
            with self._removed:
                self._removals += 1
            self._remove_pool.submit(partial(self._remove_later, name), self._noted("removal"))
            return
        self._remove_patiently(name)

    def _remove_later(self, name: str) -> None:
        try:
            self._remove_patiently(name)
        finally:
            with self._removed:
                self._removals -= 1
                self._removed.notify_all()
            self._images.tidy()

    def _remove_patiently(self, name: str) -> None:
        deadline = time.monotonic() + ENGINE_PATIENCE_SECONDS
        for _ in self._tries():
            try:
                self._remove(name)
                return
            except (DockerException, *Unanswered) as error:
                if time.monotonic() > deadline:
                    log.warning("the container %s stays until the engine is back: %s", name, error)
                    return

    def _remove(self, name: str) -> None:
        """Remove a container, running or not; it is fine if it is gone. Raises APIError."""
        try:
            self._engine.remove_container(name, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409 or "already in progress" not in explain(error):
                raise

    def _tries(self) -> Iterator[int]:
        """Count tries, with growing waits between them, until the runtime is closed."""
        backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        while True:
            yield backoff.failures
            if self._closed.wait(backoff.next_seconds()):
                return

    # Usage

    def measure(self) -> Mapping[str, Usage]:
        """The last figures; newer ones are asked for meanwhile."""
        running = {key: c for key, c in self._containers.items() if c.has_run and not c.has_ended}
        if running and not self._is_sampling and self._loop.clock() >= self._sample_at:
            self._is_sampling = True
            self._samples.submit(partial(self._sample, list(running.values())), self._sampled)
        return {key: container.usage for key, container in running.items() if container.sampled}

    def _sample(self, containers: list[_Container]) -> float:
        begin = time.monotonic()
        one_shot = None if self._engine.is_podman else True
        for container in containers:
            if container.has_ended or self._closed.is_set():
                continue
            with suppress(DockerException, *Unanswered, KeyError, TypeError):
                stats = self._engine.stats(container.name, stream=False, one_shot=one_shot)
                _take_sample(container, stats, time.monotonic())
        return time.monotonic() - begin

    def _sampled(self, outcome: Outcome[float]) -> None:
        self._is_sampling = False
        self._sample_at = self._loop.clock() + SAMPLE_SHARE * (outcome.result or 0.0)

    def confirm_memory(self, key: str) -> int:
        container = self._containers.get(key)
        return container.usage.memory_bytes if container is not None else 0

    # Around it

    def address(self, key: str) -> Address:
        container = self._containers.get(key)
        if container is None or container.has_ended:
            raise OSError("it does not run")
        try:
            found = self._engine.inspect_container(container.name)
        except (DockerException, *Unanswered) as error:
            raise OSError(str(error)) from error
        if not container.job.network:
            pid = int(found["State"].get("Pid") or 0)
            # The engine may be another machine's, or its processes may have other numbers here.
            if not pid or not proc.has_variable(pid, f"{UUID}={container.job.uuid}".encode()):
                raise OSError("it has no network, and is out of this worker's sight")
            return Address("127.0.0.1", pid)
        for network in (found["NetworkSettings"].get("Networks") or {}).values():
            if network.get("IPAddress"):
                return Address(str(network["IPAddress"]))
        raise OSError("it has no address")

    def sweep(self, keys: Collection[str]) -> None:
        self._stops.submit(partial(self._sweep_patiently, set(keys)), self._noted("sweep"))

    def _sweep_patiently(self, keys: Collection[str]) -> None:
        for _ in self._tries():
            with suppress(DockerException, *Unanswered):
                self._sweep(keys)
                return

    def _sweep(self, keys: Collection[str]) -> None:
        """Remove this worker's containers but those of ``keys`` and of the runs that it has."""
        labels = [f"{name}={value}" for name, value in self._labels.items()]
        for found in self._engine.containers(all=True, filters={"label": labels}):
            key = (found.get("Labels") or {}).get(RUN_LABEL)
            with self._lock:
                is_ours_now = key in self._containers
            if key not in keys and not is_ours_now:
                log.info("removing a container that no run of this worker has: %s", key)
                self._remove(found["Id"])

    def forget(self, key: str) -> None:
        with self._lock:
            self._containers.pop(key, None)
        image = self._found.pop(key, None)
        if image is not None:
            self._images.release(image)

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        with self._removed:
            self._removed.wait_for(lambda: self._removals == 0, deadline - time.monotonic())
        self._closed.set()
        self._images.close()
        if not self._containers and not self._asked:
            try:
                self._sweep(())
                self._network.remove()
            except (DockerException, *Unanswered) as error:
                log.warning("something of this worker stays in the engine: %s", error)
        self._engine.close()

    def _noted(self, what: str) -> Callable[[Outcome[Any]], None]:
        def done(outcome: Outcome[Any]) -> None:
            if outcome.error is not None:
                log.error("%s of a container", what, exc_info=outcome.error)

        return done


def _has_begun(container: _Container) -> bool:
    """Whether its shell has run: the first act of that is to make `stdout`, which the command may
    have removed since."""
    directory = container.job.directory
    if os.path.lexists(directory / "stdout"):
        return True
    return container.untouched is not None and _last_change(directory) != container.untouched


def _last_change(directory: Path) -> int | None:
    """When something was last put into it or taken out (`st_mtime_ns`); None if it is not there."""
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return None


def _ends_it(attributes: Mapping[str, Any]) -> bool:
    """Whether a `kill` event is of a signal that is meant to end a container."""
    return str(attributes.get("signal", "15")) in ENDING_SIGNALS


def gpu_request(gpus: Sequence[str], *, is_podman: bool) -> DeviceRequest:
    """What gives a container these GPUs. podman knows them by their CDI names, of which
    `nvidia-ctk cdi generate` makes a list."""
    if is_podman:
        names = [f"nvidia.com/gpu={gpu}" for gpu in gpus]
        return DeviceRequest(driver="cdi", device_ids=names, capabilities=[["gpu"]])
    return DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])


def _take_sample(container: _Container, stats: Mapping[str, Any], now: float) -> None:
    """Figures of the stats API, which has other names for them on cgroup v1 and on v2."""
    cpu = stats["cpu_stats"]["cpu_usage"]
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        return  # it is not there yet, or any more
    detail = memory.get("stats") or {}
    # What the kernel would give back at once is not used: v1 calls it so, v2 so.
    cached = int(detail.get("total_inactive_file", detail.get("inactive_file", 0)))
    memory_bytes = max(0, int(memory["usage"]) - cached)
    # v2 keeps no peak for the API: the largest figure that we saw must do.
    peak_bytes = max(container.peak_bytes, int(memory.get("max_usage") or 0), memory_bytes)
    cpu_seconds = int(cpu["total_usage"]) / 1e9
    cpus = 0.0
    if container.sampled:
        elapsed = max(now - container.sampled, 0.01)
        cpus = max(0.0, cpu_seconds - container.cpu_seconds) / elapsed
    container.cpu_seconds, container.sampled, container.peak_bytes = cpu_seconds, now, peak_bytes
    container.usage = Usage(
        memory_bytes=memory_bytes,
        cpus=cpus,
        user_seconds=int(cpu.get("usage_in_usermode") or 0) / 1e9,
        system_seconds=int(cpu.get("usage_in_kernelmode") or 0) / 1e9,
    )
