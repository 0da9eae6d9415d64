"""Where a manager keeps what it must remember, in the home directory; and whose mark jobs carry."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backends import registry
from backends.base import Backend, Context, Invalid
from bundles.errors import UsageError
from bundles.home import (
    CREDENTIALS_VARIABLE,
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    USER_VARIABLE,
    Home,
)
from manager import systemd

if TYPE_CHECKING:
    from manager.ledger import Pool

_OUR_VARIABLES = systemd.VARIABLES | {
    *(TOKEN_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE, CREDENTIALS_VARIABLE)
}
"""No backend and no worker is to speak with our credentials, or to systemd in our name."""


@dataclass(frozen=True, slots=True)
class Installation:
    """The manager's part of one home directory. Reading it creates nothing."""

    home: Home

    @property
    def ledger_path(self) -> Path:
        return self.home.path / "ledger.db"

    def journal_path(self, pool: str) -> Path:
        return self.home.path / "journal" / f"{pool}.jsonl"

    def lock_path(self, pool: str) -> Path:
        return self.home.path / "locks" / f"{pool}.lock"

    def refusal_path(self, pool: str) -> Path:
        """There while a pool's file is not what the pool is kept by: a line for each reason."""
        return self.home.path / "locks" / f"{pool}.refused"

    @property
    def owner_path(self) -> Path:
        """The mark that our jobs carry."""
        return self.home.path / "owner"

    def owner(self) -> str:
        """Our mark (16 hex digits); "" when this home never launched anything.

        Raises UsageError when it is another user's, or damaged: with another mark we would not know
        our jobs.
        """
        try:
            mark = self.owner_path.read_text().strip()
        except FileNotFoundError:
            return ""
        except PermissionError:
            raise UsageError(
                f"{self.owner_path} may not be read: the home is another user's; be that one, or "
                "give a home of your own with --home"
            ) from None
        if not re.fullmatch(r"[0-9a-f]{16}", mark):
            raise UsageError(
                f"{self.owner_path} is damaged: write 16 hex digits in it, the mark of the jobs "
                "that run (`owner` in a job's record), or end those jobs and remove the file"
            )
        return mark

    def create(self) -> None:
        """Make the home and our mark. Raises UsageError when it cannot be written."""
        self.home.create()
        if self.owner():
            return
        temporary = self.home.path / f".owner-{os.getpid()}"
        try:
            temporary.write_text(secrets.token_hex(8) + "\n")
            os.link(temporary, self.owner_path)  # unlike a rename this never replaces another's
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)

    def context(
        self, pool: str, environ: Mapping[str, str], work_directory_prefix: str | None = None
    ) -> Context:
        """What a backend is told; credentials stay here."""
        return Context(
            directory=self.home.path / "jobs" / pool,
            owner=self.owner(),
            pool=pool,
            environment={
                name: value for name, value in environ.items() if name not in _OUR_VARIABLES
            },
            work_directory_prefix=work_directory_prefix,
        )

    def backend(self, pool: Pool, environ: Mapping[str, str]) -> Backend:
        """The backend of a pool that the ledger knows. Raises BackendError."""
        prefix = pool.settings.get("worker_work_dir_prefix")
        try:
            module = registry.load(pool.backend)
        except KeyError:
            raise Invalid(f"there is no backend {pool.backend!r} in this version") from None
        return module.create(self.context(pool.name, environ, prefix), pool.settings)


def default_pool(backend: str, server: str, home: Home) -> str:
    """The backend's name, and the server's unless it is the home's own."""
    if server == home.address():
        return backend
    place = urlsplit(server)
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{place.netloc}{place.path}").strip("-")
    return f"{backend}-{words}"[:48].strip("-")
