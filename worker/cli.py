"""The command `bundle-worker`: its options, which are cl-worker's, and its start and end.

Nothing heavy is imported before the options are read: `--help` answers at once.
"""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, unquote

import click

from bundles import __version__
from bundles.errors import BundlesError, NotAuthenticated, Unreachable, UsageError
from bundles.exits import WorkerExit
from bundles.home import (
    HOME_VARIABLE,
    LIFETIME_VARIABLE,
    SERVER_VARIABLE,
    Home,
    find_credentials,
    find_server,
    read_password_file,
)
from bundles.model import UUID_PATTERN
from bundles.sizes import parse_size

if TYPE_CHECKING:
    from worker.settings import Settings

log = logging.getLogger("worker")

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def _tag(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[A-Za-z0-9-]+", text):
        raise click.BadParameter(f"{text!r} must be letters, digits and hyphens")
    return text


def _web_socket(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not text.startswith(("ws://", "wss://")):
        raise click.BadParameter(f"{text!r} is no address: write ws://… or wss://…")
    return text


def _uuid(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not UUID_PATTERN.fullmatch(text):
        raise click.BadParameter(f"{text!r} is no uuid: `bundles ls` shows them")
    return text


def _identity(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    if not text or text in (".", "..") or not text.isprintable() or len(text.encode()) > 100:
        raise click.BadParameter(f"{text!r} is no id: write 1 to 100 printable characters")
    return text


def _network_prefix(context: click.Context, parameter: click.Parameter, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise click.BadParameter(f"no network can be called {text!r}…: write letters and digits")
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bundle-worker", message="%(prog)s %(version)s")
@click.option("--home", metavar="DIR", help=f"Where the local server is.  [env: {HOME_VARIABLE}]")
@click.option(
    "--server",
    metavar="URL",
    help=f"Address of the server; by default the one of the home.  [env: {SERVER_VARIABLE}]",
)
@click.option(
    "--ws-server",
    callback=_web_socket,
    metavar="URL",
    help="Where a CodaLab server announces messages.  [default: /ws of the server, as ws or wss]",
)
@click.option(
    "--work-dir",
    default="codalab-worker-scratch",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="For runs and cached dependencies. Several workers may share one.",
)
@click.option(
    "--id",
    "worker_id",
    callback=_identity,
    metavar="ID",
    help="Name of this worker; started again with the same one and the same directory it carries "
    "on with its runs.  [default: HOST(PID), or of such a one that was killed in the directory]",
)
@click.option("--tag", callback=_tag, help="Take bundles of this queue too.")
@click.option("--tag-exclusive", is_flag=True, help="With --tag: take bundles of that queue only.")
@click.option("--group", metavar="NAME", help="Take bundles of the members of this group.")
@click.option(
    "--cpus",
    type=click.IntRange(min=1),
    help="How many cpus to offer.  [default: as many as --cpuset has, and its cgroup allows]",
)
@click.option(
    "--cpuset",
    default="ALL",
    show_default=True,
    help="Cpus to offer, and to keep runs on: such as 0-3,8.",
)
@click.option(
    "--gpuset",
    default="ALL",
    show_default=True,
    help="Gpus to offer, by index or UUID; NONE for none.",
)
@click.option(
    "--max-memory",
    callback=_size,
    metavar="SIZE",
    help="How much memory to offer.  [default: what there is]",
)
@click.option(
    "--max-work-dir-size",
    callback=_size,
    default="10g",
    show_default=True,
    metavar="SIZE",
    help="Cached dependencies that nothing uses are removed beyond this.",
)
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False),
    help="Two lines, user and password; mode 0600.",
)
@click.option(
    "--checkin-frequency-seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="How often figures of runs are reported. Changes are reported at once.",
)
@click.option("--exit-when-idle", is_flag=True, help="Leave when there is nothing to run.")
@click.option(
    "--idle-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="With --exit-when-idle: for so long.",
)
@click.option(
    "--exit-after-num-runs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave after so many runs.",
)
@click.option(
    "--lifetime-seconds",
    type=click.FloatRange(min=0, min_open=True),
    envvar=LIFETIME_VARIABLE,
    metavar="SECONDS",
    help="The worker will be ended so long after its start: it is given no bundles that ask for "
    f"more time than is left.  [env: {LIFETIME_VARIABLE}]",
)
@click.option(
    "--pass-down-termination",
    is_flag=True,
    help="On SIGTERM end the runs and give their bundles back, instead of leaving them running "
    "for the next start.",
)
@click.option(
    "--preemptible",
    is_flag=True,
    help="The machine may vanish: bundles are then run elsewhere.",
)
@click.option(
    "--preemption",
    type=click.Choice(["auto", "aws", "gcp", "azure", "none"]),
    default="auto",
    show_default=True,
    help="Whose notice that this machine is taken away to wait for. auto finds out where it is; "
    "in a Slurm job it implies --pass-down-termination.",
)
@click.option(
    "--preemption-check-seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="How often aws and azure are asked for that; gcp tells by itself.",
)
@click.option(
    "--on-lease-lost",
    type=click.Choice(["finish", "stop"]),
    default="finish",
    show_default=True,
    help="What runs do that may be another worker's by now, since the server was not reached for "
    "so long: go on (it refuses what comes too late), or end.",
)
@click.option("--delete-work-dir-on-exit", is_flag=True, help="Remove --work-dir at the end.")
@click.option("--exit-on-exception", is_flag=True, help="Leave when something unforeseen happens.")
@click.option(
    "--shared-file-system",
    is_flag=True,
    help="The server's contents are mounted here at the same path: fetch and upload nothing.",
)
@click.option(
    "--download-dependencies-max-retries",
    "download_retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a failed download of a dependency is tried again.",
)
@click.option(
    "--runtime",
    "--bundle-runtime",
    type=click.Choice(["auto", "docker", "podman", "apptainer", "singularity", "process"]),
    default="auto",
    show_default=True,
    help="What runs bundles. auto is docker when an engine answers, else apptainer where it is "
    "installed, else process.",
)
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "bubblewrap", "none"]),
    default="auto",
    show_default=True,
    help="What confines bundles that run as processes. auto is bubblewrap where it works.",
)
@click.option(
    "--max-image-cache-size",
    callback=_size,
    metavar="SIZE",
    help="For container runtimes: images that workers pulled are removed beyond this.",
)
@click.option(
    "--max-image-size",
    callback=_size,
    metavar="SIZE",
    help="For container runtimes: larger images are refused.",
)
@click.option(
    "--shared-memory-size-gb",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="For container runtimes: size of /dev/shm.",
)
@click.option(
    "--network-prefix",
    callback=_network_prefix,
    default="codalab_worker_network",
    show_default=True,
    help="For container runtimes: names of networks begin so.",
)
@click.option(
    "--once",
    callback=_uuid,
    metavar="UUID",
    help="Run a copy of this bundle here and show what it does; the server is told nothing.",
)
@click.option("--verbose", is_flag=True, help="Log every step.")
def bundle_worker(**options: Any) -> None:
    """Run bundles of a server on this machine.

    Credentials are --password-file, or WORKER_MANAGER_TOKEN, or CODALAB_USERNAME and
    CODALAB_PASSWORD; for the server of this home none are needed.

    \b
    Exit codes: 0 idle or done, 2 bad usage, 3 credentials not taken,
    4 no server at the start, 5 unusable directory, 6 another worker has
    this id, 7 ended by a signal before it was idle, 8 its machine is taken
    away, 9 no engine, 10 wrong clock, 1 anything else.
    """
    raise SystemExit(_serve(options))


def _serve(options: dict[str, Any]) -> int:
    logging.basicConfig(
        level=logging.DEBUG if options["verbose"] else logging.INFO,
        format="%(asctime)s %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("httpx", "httpcore", "urllib3", "docker"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    home = Home.find(options["home"])
    server = find_server(options["server"], home)
    if options["password_file"]:
        credentials = read_password_file(options["password_file"])
    else:
        credentials = find_credentials(server, home)
    from worker.fitness import directory_fault

    _keep_descriptors_from_runs()
    lock = None
    try:
        for worker_id in _names(options):
            settings = _settings({**options, "worker_id": worker_id})
            settings.runs_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(settings.lock_path)
            if lock is not None:
                break
    except OSError as error:
        click.echo(
            f"bundle-worker: the work directory {settings.work_directory} cannot be used "
            f"({error.strerror}): give another with --work-dir",
            err=True,
        )
        return WorkerExit.UNUSABLE
    fault = directory_fault(settings.work_directory)
    if fault is not None and not any(settings.runs_directory.iterdir()):
        click.echo(
            f"bundle-worker: the work directory {settings.work_directory} cannot be used "
            f"({fault}): make room, or give another with --work-dir",
            err=True,
        )
        return WorkerExit.UNUSABLE
    if lock is None:
        click.echo(
            f"bundle-worker: another worker {settings.worker_id} is at work in "
            f"{settings.work_directory}: end it, or give another --id",
            err=True,
        )
        return WorkerExit.REPLACED

    from bundles.client import WORKER_CLIENT_ID, Client
    from worker.clock import SteadyClock
    from worker.loop import Loop
    from worker.preemption.watcher import find_watcher
    from worker.runtimes.choice import NoRuntime, choose_runtime
    from worker.worker import Worker

    try:
        make_runtime = choose_runtime(
            options["runtime"],
            settings,
            network_prefix=options["network_prefix"],
            shared_memory_bytes=options["shared_memory_size_gb"] * 1024**3,
            max_image_bytes=options["max_image_size"],
            max_image_cache_bytes=options["max_image_cache_size"],
            sandbox=options["sandbox"],
            hidden=[Path(p) for p in (home.path, options["password_file"]) if p],
        )
    except NoRuntime as error:
        return _say(error, WorkerExit.NO_RUNTIME)
    loop = Loop()
    clock = SteadyClock(settings.own_directory / "clock")
    if options["once"] is not None:
        from worker.rehearsal import ReadingClient, Rehearsal

        reading = ReadingClient(server, credentials, client_id=WORKER_CLIENT_ID)
        rehearsal = Rehearsal(settings, reading, loop, make_runtime, clock=clock)
        for number in ENDING_SIGNALS:
            loop.on_signal(number, rehearsal.terminate)
        try:
            return rehearsal.run(options["once"])
        finally:
            _tidy(settings, is_empty=not rehearsal.holds_runs)
    client = Client(server, credentials, client_id=WORKER_CLIENT_ID)
    worker = Worker(settings, client, loop, make_runtime, clock=clock)
    for number in ENDING_SIGNALS:
        loop.on_signal(number, worker.terminate)
    watcher = find_watcher(
        options["preemption"],
        options["preemption_check_seconds"],
        lambda notice: loop.post(partial(worker.preempted, notice)),
    )
    code = worker.run()
    _tidy(settings, is_empty=not worker.holds_runs)
    if watcher is not None:
        watcher.close()
        if code is WorkerExit.PREEMPTED and not _has_neighbours(settings):
            watcher.acknowledge()
    return code


def _names(options: dict[str, Any]) -> Iterator[str]:
    """Who this worker may be; the first that nobody is. Whoever gives no id cannot give the same
    one again: what such a worker of this host left is carried on with, runs before what nobody
    else would ever remove (files, and what its engine has of it)."""
    if options["worker_id"] is not None:
        yield options["worker_id"]
    elif options["once"] is not None:
        yield f"once-{options['once']}"
    else:
        host = socket.gethostname()
        mine = f"workers/{glob.escape(quote(host))}(*)"
        places = sorted(options["work_dir"].glob(mine))
        for place in sorted(places, key=_has_runs, reverse=True):
            with suppress(OSError):  # it may be another user's, or go away just now
                if not _is_held(place / "lock"):
                    yield unquote(place.name)
        yield f"{host}({os.getpid()})"


def _has_runs(place: Path) -> bool:
    with suppress(OSError):
        return any((place / "runs").iterdir())
    return False


def _has_neighbours(settings: Settings) -> bool:
    """Whether other workers of the directory live: the machine is theirs, too."""
    for path in settings.work_directory.glob("workers/*/lock"):
        with suppress(OSError):
            if path != settings.lock_path and _is_held(path):
                return True
    return False


def _is_held(lock: Path) -> bool:
    """Whether a worker lives that has this lock. Raises OSError when that cannot be known."""
    with lock.open() as file:
        try:
            # NFS gives an exclusive one to those alone who may write.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _settings(options: dict[str, Any]) -> Settings:
    from worker.bounds import group_bounds, slurm_bounds, visible_gpus
    from worker.devices import Devices, offered_cpus, offered_gpus, total_memory_bytes
    from worker.settings import Settings

    bounds = visible_gpus(os.environ).within(slurm_bounds(os.environ)).within(group_bounds(_text))
    cpus, is_pinned = offered_cpus(
        options["cpuset"], options["cpus"], options["worker_id"], quota=bounds.cpus
    )
    memory_limits = (total_memory_bytes(), bounds.memory_bytes, options["max_memory"])
    memory_bytes = min(limit for limit in memory_limits if limit is not None)
    return Settings(
        worker_id=options["worker_id"],
        work_directory=Path(os.path.realpath(options["work_dir"])),
        devices=Devices(cpus, offered_gpus(options["gpuset"], bounds.gpus), is_pinned),
        memory_bytes=memory_bytes,
        max_work_dir_bytes=options["max_work_dir_size"],
        checkin_frequency_seconds=options["checkin_frequency_seconds"],
        tag=options["tag"],
        tag_exclusive=options["tag_exclusive"] and options["tag"] is not None,
        group=options["group"],
        preemptible=options["preemptible"],
        ws_server=options["ws_server"],
        exit_when_idle=options["exit_when_idle"],
        idle_seconds=options["idle_seconds"],
        exit_after_num_runs=options["exit_after_num_runs"],
        lifetime_seconds=options["lifetime_seconds"],
        exit_on_exception=options["exit_on_exception"],
        # With a Slurm job end all of its processes: there is nothing to come back to.
        pass_down_termination=options["pass_down_termination"]
        or (options["preemption"] != "none" and "SLURM_JOB_ID" in os.environ),
        delete_work_dir_on_exit=options["delete_work_dir_on_exit"],
        download_retries=options["download_retries"],
        shared_file_system=options["shared_file_system"],
        stops_on_lost_lease=options["on_lease_lost"] == "stop",
    )


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _keep_descriptors_from_runs() -> None:
    """What our own parent left open (a job's lock, say) is not for the runs, which may outlive
    us."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue


def _take_lock(path: Path) -> int | None:
    """A descriptor that holds the worker's directory until this process ends; None if another
    does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _tidy(settings: Settings, *, is_empty: bool) -> None:
    """Remove what is ours alone; with --delete-work-dir-on-exit what nobody else uses as well."""
    from worker.trees import remove_tree

    if not is_empty:
        return
    try:
        remove_tree(settings.own_directory)
        workers = settings.work_directory / "workers"
        if settings.delete_work_dir_on_exit and not any(workers.iterdir()):
            remove_tree(settings.work_directory)
    except OSError as error:
        log.warning("something stays behind in %s: %s", settings.work_directory, error)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with one of bundles.exits.WorkerExit."""
    code: int
    try:
        bundle_worker.main(
            args=None if arguments is None else list(arguments),
            prog_name="bundle-worker",
            standalone_mode=False,
        )
        code = WorkerExit.FINISHED
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else WorkerExit.FAILED
    except click.ClickException as error:
        sentence = " ".join(error.format_message().split())
        click.echo(f"bundle-worker: {sentence} (see `bundle-worker --help`)", err=True)
        code = WorkerExit.USAGE
    except click.Abort:
        code = WorkerExit.TERMINATED
    except NotAuthenticated as error:
        code = _say(error, WorkerExit.UNAUTHORIZED)
    except UsageError as error:
        code = _say(error, WorkerExit.USAGE)
    except Unreachable as error:
        code = _say(error, WorkerExit.UNREACHABLE)
    except BundlesError as error:
        code = _say(error, WorkerExit.FAILED)
    except Exception:
        log.exception("the worker failed")
        code = WorkerExit.FAILED
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # it was closed at our start, or its reader left
            stream.flush()
    # Threads may still wait for a server; nobody waits for them.
    os._exit(code)


def _say(error: Exception, code: WorkerExit) -> int:
    click.echo(f"bundle-worker: {error}", err=True)
    return code
