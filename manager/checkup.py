"""Named checks before the first launch, each with a verdict and a remedy.

A check looks and changes nothing, but that the server may give a worker token, as every launch has
it do. What a backend checks of its own is its `check`. Not for how verdicts are shown: doctor.
"""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click

from backends import registry
from backends.base import (
    POOL_PATTERN,
    BackendError,
    Invalid,
    Job,
    JobResources,
    JobState,
    LaunchKey,
    Preview,
    Unauthorized,
)
from bundles.errors import (
    BundlesError,
    NotAuthenticated,
    NotPermitted,
    ServerFault,
    Unreachable,
    UsageError,
)
from bundles.home import (
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    USER_VARIABLE,
    Credentials,
    read_password_file,
)
from bundles.sizes import format_size
from manager.examination import Examination, Status, Verdict, fail, ok, warn
from manager.health import judge
from manager.history import read_journal
from manager.launcher import Launcher
from manager.lock import holder
from manager.options import check_together
from manager.policy import count

OLDEST_PYTHON = (3, 11, 4)
LEAST_DISK_BYTES = 16 * 1024**2
"""Ledger and journal of a pool do not get larger than about this in a day."""
ROOMY_DISK_BYTES = 1024**3
LEAST_OPEN_FILES = 256
SLIGHT_SKEW_SECONDS = 30.0
LARGEST_SKEW_SECONDS = 3600.0
"""A worker whose clock is further off leaves at once."""
SLOW_LOOK_SECONDS = 60.0
SLOW_GROWTH_SECONDS = 3600.0
WORKER_START_SECONDS = 60.0
ELSEWHERE = frozenset({"slurm", "aws-batch", "azure-batch", "gcp-batch"})
"""Backends whose workers are on other machines."""


# This machine


def python_version(given: Examination) -> Verdict:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:3] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return fail(f"Python {found}", f"install with Python {oldest} or later")
    return ok(f"Python {found}")


def open_files(given: Examination) -> Verdict:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES:
        return warn(f"{soft} files may be open at a time", f"ulimit -n {LEAST_OPEN_FILES}")
    return ok("enough files may be open at a time")


# The home


def home_writable(given: Examination) -> Verdict:
    place = _nearest(given.home.path)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return fail(
            f"{given.home.path} cannot be written", "give another home by --home, or its rights"
        )
    return ok(f"{given.home.path} can be written")


def home_private(given: Examination) -> Verdict:
    try:
        mode = stat.S_IMODE(given.home.path.stat().st_mode)
    except FileNotFoundError:
        return ok("the home will be made for its owner alone")
    if mode & 0o077:
        return warn(
            f"others of this machine may look into {given.home.path} ({mode:04o})",
            f"chmod 700 {given.home.path}",
        )
    return ok("the home is its owner's alone")


def home_disk(given: Examination) -> Verdict:
    free = shutil.disk_usage(_nearest(given.home.path)).free
    sentence = f"{format_size(free)} free for the home"
    if free < LEAST_DISK_BYTES:
        return fail(sentence, "make room: the ledger could not be written")
    if free < ROOMY_DISK_BYTES:
        return warn(sentence, "make room for the ledger, the journal and logs")
    return ok(sentence)


def owner_mark(given: Examination) -> Verdict:
    try:
        mark = given.installation.owner()
    except (UsageError, OSError) as error:
        return fail(str(error), f"mend {given.installation.owner_path}")
    return ok(f"our jobs carry {mark}" if mark else "the mark of our jobs will be made")


def ledger_usable(given: Examination) -> Verdict:
    path = given.installation.ledger_path
    try:
        ledger = given.ledger
        if ledger is None:
            return ok("the ledger will be made by the first manager")
        ledger.check()
    except sqlite3.Error as error:
        return fail(f"{path}: {error}", "move it away if it is damaged: running jobs stay known")
    if not os.access(path, os.W_OK):
        return fail(f"{path} cannot be written", f"chown or chmod {path}")
    return ok(f"{path} can be used")


def ledger_unsettled(given: Examination) -> Verdict:
    number = len(given.ledger.unsettled(given.pool)) if given.ledger else 0
    if number and holder(given.installation.lock_path(given.pool)) is None:
        return warn(
            f"what became of {number} of the last intents to launch is not known",
            "start the manager: its first look finds out",
        )
    return ok("what became of every launch is known, or its manager finds out")


def journal_writable(given: Examination) -> Verdict:
    path = given.installation.journal_path(given.pool)
    place = path if path.exists() else _nearest(path)
    if not os.access(place, os.W_OK):
        return fail(f"{path} cannot be written", f"chown or chmod {place}")
    return ok(f"{path} can be written")


def journal_readable(given: Examination) -> Verdict:
    try:
        number = sum(1 for _ in read_journal(given.installation.journal_path(given.pool)))
    except (UsageError, OSError) as error:
        return warn(str(error), "`explain` and `replay` need it; a manager writes on all the same")
    return ok(f"{count(number, 'tick')} in the journal")


def _nearest(path: Path) -> Path:
    """The path, or the first above it that there is."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# The pool


def pool_name(given: Examination) -> Verdict:
    if not POOL_PATTERN.fullmatch(given.pool):
        return fail(f"{given.pool!r} is not a name for a pool", "give another by --pool")
    return ok(given.pool)


def pool_identity(given: Examination) -> Verdict:
    for pool in given.ledger.pools() if given.ledger else []:
        if pool.name != given.pool:
            continue
        if pool.backend != registry.find(given.backend_name).name:
            return warn(
                f"{pool.name} was a pool of {pool.backend}: its jobs there are not counted here",
                "give another name by --pool",
            )
        if pool.server != given.server:
            return warn(
                f"{pool.name} was for {pool.server}: workers that run serve that one",
                "give another name by --pool",
            )
    return ok(f"{given.pool} is, or will be, a pool of {given.backend_name}")


def pool_lock(given: Examination) -> Verdict:
    process = holder(given.installation.lock_path(given.pool))
    if process is not None:
        return warn(
            f"process {process} keeps the pool {given.pool}",
            "end it first, or give another name by --pool: a second manager waits",
        )
    return ok("no other manager keeps the pool")


def limits(given: Examination) -> Verdict:
    try:
        check_together(dict(given.settings))
    except click.UsageError as error:
        return fail(error.message, "change one of the options")
    low, high = given.settings["min_workers"], given.settings["max_workers"]
    if high == 0:
        return warn("--max-workers is 0: nothing is ever launched", "give --max-workers")
    return ok(f"{low} to {high} workers")


def idle_seconds(given: Examination) -> Verdict:
    idle, low = given.settings["worker_idle_seconds"], given.settings["min_workers"]
    if low and idle < SLOW_LOOK_SECONDS:
        return warn(
            f"idle workers leave after {idle} s, and others are launched again each time",
            "raise --worker-idle-seconds, or give --min-workers 0",
        )
    return ok(f"idle workers leave after {idle} s")


def launch_interval(given: Examination) -> Verdict:
    interval, high = given.settings["min_seconds_between_workers"], given.settings["max_workers"]
    if interval * high > SLOW_GROWTH_SECONDS:
        return warn(
            f"one launch every {interval:g} s: {high} workers take {interval * high / 3600:.1f} h",
            "lower --min-seconds-between-workers",
        )
    return ok("the pool can grow to its maximum within the hour")


def look_interval(given: Examination) -> Verdict:
    whoever, sleep = given.account, given.settings["sleep_time"]
    assert whoever is not None
    if "changes" in given.client.features:
        return ok("the server says at once when a bundle is staged")
    if sleep > SLOW_LOOK_SECONDS:
        return warn(
            f"staged bundles are seen up to {sleep:g} s late: this server does not tell of them",
            "lower --sleep-time",
        )
    return ok(f"the server is asked every {sleep:g} s")


# The server


def server_address(given: Examination) -> Verdict:
    try:
        return ok(given.server)
    except UsageError as error:
        return fail(str(error), "give --server http://HOST:PORT")


def server_encrypted(given: Examination) -> Verdict:
    if given.server.startswith("http://") and not _is_here(given.server):
        return warn(
            f"tokens and data travel to {given.server} unencrypted",
            "give an https:// address, unless the network is your own",
        )
    return ok("nobody on the way can read along")


def server_for_workers(given: Examination) -> Verdict:
    if given.backend_name in ELSEWHERE and _is_here(given.server):
        return warn(
            f"{given.server} is this machine alone: workers on others do not reach it",
            "give an address that they know; `bundles serve --host` takes one",
        )
    return ok("nothing speaks against workers reaching the server")


def password_file(given: Examination) -> Verdict:
    path = given.settings["password_file"]
    if not path:
        return ok("none is given")
    try:
        read_password_file(path)
    except UsageError as error:
        return fail(str(error), "write user and password in it, a line each, mode 0600")
    return ok(f"{path} can be read by its owner alone")


def credentials_found(given: Examination) -> Verdict:
    try:
        given.credentials  # noqa: B018
    except BundlesError as error:
        return fail(str(error), f"set {TOKEN_VARIABLE}, or give --password-file")
    return ok("there are credentials for the server")


def credentials_single(given: Examination) -> Verdict:
    has_password = given.environ.get(USER_VARIABLE) and given.environ.get(PASSWORD_VARIABLE)
    if given.settings["password_file"]:
        if given.environ.get(TOKEN_VARIABLE) or has_password:
            return warn("--password-file is taken, not the environment", "unset what is not meant")
    elif given.environ.get(TOKEN_VARIABLE) and has_password:
        return warn(
            f"{TOKEN_VARIABLE} is taken, not {USER_VARIABLE}",
            f"unset {TOKEN_VARIABLE} if the user is meant",
        )
    return ok("there is no doubt which ones are meant")


def server_reachable(given: Examination) -> Verdict:
    try:
        given.account  # noqa: B018
    except (Unreachable, ServerFault) as error:
        return fail(str(error), "start the server (`bundles serve`), or give its address")
    except BundlesError:
        given.client  # noqa: B018 - without credentials nobody was asked
    return ok(f"{given.server} answers")


def credentials_accepted(given: Examination) -> Verdict:
    given.credentials  # noqa: B018 - that there are none is said besides
    try:
        account = given.account
    except (NotAuthenticated, NotPermitted) as error:
        return fail(str(error), f"renew {TOKEN_VARIABLE}, or the user and password")
    return ok(f"we are {account.get('user_name') or account.get('id')}")


def whose_bundles(given: Examination) -> Verdict:
    account = given.account
    if account.get("is_root_user") or given.environ.get(USER_VARIABLE) == "codalab":
        return ok("everybody's bundles count")
    if given.settings["worker_group"]:
        return warn(
            f"only our own bundles count, not those of the group {given.settings['worker_group']}",
            "run the manager as the server's root user",
        )
    return ok("our own bundles count")


def _is_here(server: str) -> bool:
    return urlsplit(server).hostname in ("localhost", "127.0.0.1", "::1")


def clock(given: Examination) -> Verdict:
    given.account  # noqa: B018
    skew = given.client.clock_skew_seconds
    if skew is None and _is_here(given.server):
        return ok("the server has this machine's clock")
    if skew is None:
        return warn("the server does not tell its time", "compare the clocks by hand")
    sentence = f"the server's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) > LARGEST_SKEW_SECONDS:
        return fail(sentence, "set the clocks, by NTP: tokens and leases depend on them")
    if abs(skew) > SLIGHT_SKEW_SECONDS:
        return warn(sentence, "set the clocks, by NTP")
    return ok("the server's clock agrees with ours")


def worker_token(given: Examination) -> Verdict:
    given.account  # noqa: B018
    launcher = Launcher(given.server, given.worker, _resources(given), given.credentials)
    try:
        secrets = launcher.secrets(given.client)
    except BundlesError as error:
        return fail(str(error), f"set {USER_VARIABLE} and {PASSWORD_VARIABLE}")
    if TOKEN_VARIABLE in secrets:
        return ok("the server gives tokens that can do what a worker does and nothing else")
    return ok("workers get the user and the password: this server gives no worker tokens")


def search_words(given: Examination) -> Verdict:
    given.account  # noqa: B018 - a password file that is none is said besides
    try:
        given.staged  # noqa: B018
    except UsageError as error:
        return fail(f"the server refuses the search: {error}", "change --search")
    return ok("the server understands the search")


def bundles_fit(given: Examination) -> Verdict:
    demand, unfit = given.staged
    if unfit:
        return warn(
            f"{count(unfit, 'staged bundle')} would fit no worker of this pool",
            "raise --cpus, --gpus or --memory-mb, or give their --worker-tag: `explain BUNDLE` "
            "says what one needs",
        )
    return ok(f"{count(sum(demand.values()), 'staged bundle')}, and a worker could run each")


# The workers


def worker_command(given: Examination) -> Verdict:
    if not given.backend.capabilities.shares_files and given.worker.executable is None:
        return ok("`bundle-worker` of the workers' image")
    word = given.worker.command(shares_files=given.backend.capabilities.shares_files)[0]
    if not given.backend.capabilities.shares_files:
        return ok(f"{word} of the workers' image")
    if shutil.which(word, path=given.environ.get("PATH")) is None:
        return fail(f"there is no program {word}", "give --worker-executable its whole path")
    return ok(f"{word} is there")


def worker_starts(given: Examination) -> Verdict:
    if not given.backend.capabilities.shares_files or given.worker.executable is not None:
        return ok("not ours to try")
    command = [*given.worker.command(shares_files=True), "--help"]
    try:
        done = subprocess.run(
            command,
            env=dict(given.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WORKER_START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return fail(f"our worker does not start: {error}", "install worker-manager anew")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return fail(f"our worker does not start: {said}", "install worker-manager anew")
    return ok("our worker starts")


def work_directory(given: Examination) -> Verdict:
    prefix = given.settings["worker_work_dir_prefix"]
    if not prefix:
        return ok("workers keep their files where the backend says")
    if not os.path.isabs(prefix):
        return warn(
            f"--worker-work-dir-prefix {prefix} depends on where a worker starts",
            "give a path from the root",
        )
    if given.backend.capabilities.shares_files and not os.access(_nearest(Path(prefix)), os.W_OK):
        return fail(f"{prefix} cannot be written", "give another --worker-work-dir-prefix")
    return ok(f"workers keep their files under {prefix}")


def worker_image(given: Examination) -> Verdict:
    options = {option.name for option in given.module.options()}
    if "image" not in options:
        return ok("this backend needs no image")
    image = given.settings.get("image")
    if not image:
        return fail("workers have no image", "give --image, one with `bundle-worker` in it")
    last = str(image).rpartition("/")[2]
    if "@" not in last and last.partition(":")[2] in ("", "latest"):
        return warn(
            f"{image} may be another image tomorrow", "name a tag of one version, or a digest"
        )
    return ok(str(image))


# The backend


def backend_loaded(given: Examination) -> Verdict:
    try:
        given.module  # noqa: B018
    except BackendError as error:
        return fail(str(error), "pip install 'worker-manager[all]'")
    return ok(f"{given.backend_name} can be loaded")


def backend_options(given: Examination) -> Verdict:
    try:
        given.backend  # noqa: B018
    except BackendError as error:
        return fail(str(error), f"see `worker-manager {given.backend_name} --help`")
    return ok("the backend takes its options")


def jobs_listed(given: Examination) -> Verdict:
    given.backend  # noqa: B018 - why there is none is said besides
    try:
        jobs = given.jobs
    except BackendError as error:
        return fail(f"our jobs cannot be listed: {error}", "nothing is launched until they can")
    return ok(f"{count(len(_living(jobs)), 'job')} of ours")


def jobs_known(given: Examination) -> Verdict:
    ledger = given.ledger
    strange = [
        job
        for job in _living(given.jobs)
        if job.key is None or ledger is None or ledger.launch(job.key) is None
    ]
    if strange:
        return warn(
            f"{count(len(strange), 'job')} of ours that the ledger does not know: {strange[0].id}",
            "they count as workers; was the ledger moved away, or the home copied?",
        )
    return ok("the ledger knows every job of ours")


def room_for_more(given: Examination) -> Verdict:
    number, high = len(_living(given.jobs)), given.settings["max_workers"]
    if number >= high > 0:
        return warn(f"{number} jobs of at most {high}", "raise --max-workers if more are wanted")
    return ok(f"{number} jobs of at most {high}")


def launches_held(given: Examination) -> Verdict:
    health = judge(given.record, time.time())
    if health.cause is not None:
        remedy = "see `worker-manager explain` of that worker, and mend it first"
        return warn(health.sentence(time.time()), remedy)
    return ok("the last launches did not fail")


def launch_preview(given: Examination) -> Verdict:
    launcher = Launcher(given.server, given.worker, _resources(given), Credentials())
    keys = LaunchKey.make_row(given.pool, 1, 1)
    requests = launcher.requests(keys, given.backend, {TOKEN_VARIABLE: "…"})
    (result,) = given.backend.launch(requests, dry_run=True)
    if not isinstance(result, Preview):
        return fail(f"a launch would be refused: {result}", "change the option it names")
    return ok("a launch can be made up; --dry-run shows it")


def _living(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.state is not JobState.ENDED]


def _resources(given: Examination) -> JobResources:
    settings = given.settings
    return JobResources(settings["cpus"], settings["gpus"], settings["memory_mb"] * 1024**2)


CHECKS: Mapping[str, Callable[[Examination], Verdict]] = {
    "python-version": python_version,
    "open-files": open_files,
    "home-writable": home_writable,
    "home-private": home_private,
    "home-disk": home_disk,
    "owner-mark": owner_mark,
    "ledger-usable": ledger_usable,
    "ledger-unsettled": ledger_unsettled,
    "journal-writable": journal_writable,
    "journal-readable": journal_readable,
    "server-address": server_address,
    "server-encrypted": server_encrypted,
    "server-for-workers": server_for_workers,
    "password-file": password_file,
    "credentials-found": credentials_found,
    "credentials-single": credentials_single,
    "server-reachable": server_reachable,
    "credentials-accepted": credentials_accepted,
    "clock": clock,
    "worker-token": worker_token,
    "whose-bundles": whose_bundles,
    "pool-name": pool_name,
    "pool-identity": pool_identity,
    "pool-lock": pool_lock,
    "limits": limits,
    "idle-seconds": idle_seconds,
    "launch-interval": launch_interval,
    "look-interval": look_interval,
    "backend-loaded": backend_loaded,
    "backend-options": backend_options,
    "worker-command": worker_command,
    "worker-starts": worker_starts,
    "worker-image": worker_image,
    "work-directory": work_directory,
    "launch-preview": launch_preview,
    "jobs-listed": jobs_listed,
    "jobs-known": jobs_known,
    "room-for-more": room_for_more,
    "launches-held": launches_held,
    "search-words": search_words,
    "bundles-fit": bundles_fit,
}
"""Their names stay."""


def examine(given: Examination) -> Iterator[tuple[str, Verdict]]:
    """Every check in its order, then the backend's own findings, as `backend: SUBJECT`."""
    failed: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            verdict = check(given)
        except (BundlesError, BackendError, sqlite3.Error, OSError) as error:
            cause = next((n for n, said in failed.items() if str(error) in said), "")
            verdict = warn(f"not looked at: {cause or error}", "mend that first, and ask again")
        if verdict.status is Status.FAIL:
            failed[name] = verdict.sentence
        yield name, verdict
    try:
        findings = given.backend.check()
    except (BundlesError, BackendError, OSError):
        return
    for finding in findings:
        status = Status.OK if finding.error is None else Status.WARN
        if isinstance(finding.error, Invalid | Unauthorized):
            status = Status.FAIL
        yield f"backend: {finding.subject}", Verdict(status, finding.sentence, finding.remedy)
