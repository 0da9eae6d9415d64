"""Where things lie and whom to talk to: the home directory, the server's address, credentials.

Read once by each command at its start. Not for settings of one command.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundles.errors import NotAuthenticated, UsageError

DEFAULT_PORT = 2900
DEFAULT_SERVER = f"http://127.0.0.1:{DEFAULT_PORT}"

HOME_VARIABLE = "WORKER_MANAGER_HOME"
SERVER_VARIABLE = "WORKER_MANAGER_SERVER"
TOKEN_VARIABLE = "WORKER_MANAGER_TOKEN"
USER_VARIABLE = "CODALAB_USERNAME"
PASSWORD_VARIABLE = "CODALAB_PASSWORD"
LIFETIME_VARIABLE = "WORKER_MANAGER_LIFETIME_SECONDS"
"""By which a manager tells its workers how long they live: those of an earlier version, and
CodaLab's, would not take an option that they do not know."""
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Where systemd has put a unit's credentials (systemd.exec(5), `LoadCredential=`)."""


@dataclass(frozen=True, slots=True)
class Home:
    """The home directory: the embedded server's data, its token, the manager's ledger."""

    path: Path

    @classmethod
    def find(cls, option: str | None = None, environ: Mapping[str, str] = os.environ) -> Home:
        """`--home`, else `WORKER_MANAGER_HOME`, else where platformdirs says. Creates nothing."""
        chosen = option or environ.get(HOME_VARIABLE)
        if chosen:
            return cls(Path(chosen).expanduser().absolute())
        import platformdirs

        return cls(Path(platformdirs.user_data_dir("worker-manager")))

    def create(self) -> Path:
        """Make the directory (0700). Raises UsageError when it cannot be written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"the home directory {self.path} cannot be written ({error.strerror}): "
                f"give another with --home or {HOME_VARIABLE}"
            ) from error
        return self.path

    @property
    def token_path(self) -> Path:
        """The admin's token, written by the first `bundles serve`, mode 0600."""
        return self.path / "token"

    @property
    def address_path(self) -> Path:
        """The address of the embedded server of this home, written when it listens."""
        return self.path / "server"

    def address(self) -> str:
        """The embedded server's address, as it last said; the default one if it never did."""
        try:
            return self.address_path.read_text().strip() or DEFAULT_SERVER
        except OSError:
            return DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class Credentials:
    """A bearer token, or a user and password to get one with. Never shown."""

    token: str | None = None
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        kind = "token" if self.token else "password" if self.username else "none"
        return f"Credentials({kind})"


def find_server(option: str | None, home: Home, environ: Mapping[str, str] = os.environ) -> str:
    """`--server`, else `WORKER_MANAGER_SERVER`, else the embedded server of this home."""
    address = (option or environ.get(SERVER_VARIABLE) or home.address()).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"the server {address!r} is not an address: write http://… or https://…")
    return address


def find_credentials(
    server: str, home: Home, environ: Mapping[str, str] = os.environ
) -> Credentials:
    """`WORKER_MANAGER_TOKEN`, else `CODALAB_USERNAME` and `CODALAB_PASSWORD`, else systemd's
    credential `token` or `password` (two lines, as in a password file), else the home's own token:
    that one only for the embedded server of this home, so that no other ever sees it.

    Raises NotAuthenticated when there is none, UsageError when a credential cannot be read.
    """
    if token := _token_in(environ):
        if not (token.isascii() and token.isprintable()):
            raise UsageError(f"what {TOKEN_VARIABLE} holds is no token: copy it anew")
        return Credentials(token=token)
    username, password = environ.get(USER_VARIABLE), environ.get(PASSWORD_VARIABLE)
    if username and password:
        return Credentials(username=username, password=password)
    directory = environ.get(CREDENTIALS_VARIABLE)
    if directory and (found := _of_systemd(Path(directory))):
        return found
    if server == home.address():
        try:
            return Credentials(token=home.token_path.read_text().strip())
        except OSError:
            pass
    raise NotAuthenticated(
        f"no credentials for {server}: set {USER_VARIABLE} and {PASSWORD_VARIABLE}, or "
        f"{TOKEN_VARIABLE}; or start a server of your own with `bundles serve`"
    )


def given_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The administrator's token that a server is given, from where `find_credentials` takes it:
    `WORKER_MANAGER_TOKEN`, else systemd's credential `token`. Raises UsageError when that cannot be
    read."""
    if token := _token_in(environ):
        return token
    directory = environ.get(CREDENTIALS_VARIABLE)
    found = _of_systemd(Path(directory)) if directory else None
    return found.token if found else None


def _token_in(environ: Mapping[str, str]) -> str:
    """Without the newline that it has when a secret was made of a file."""
    return environ.get(TOKEN_VARIABLE, "").strip()


def _of_systemd(directory: Path) -> Credentials | None:
    """Files that are this unit's alone by the directory they are in, not by their modes: systemd
    may let the unit's user in by an access list, which a mode shows as the group's right."""
    try:
        if (directory / "token").exists():
            return Credentials(token=(directory / "token").read_text().strip())
        if (directory / "password").exists():
            return _user_and_password(directory / "password")
    except OSError as error:
        raise UsageError(
            f"the credential {error.filename} cannot be read: {error.strerror}"
        ) from error
    return None


def read_password_file(path: str | os.PathLike[str]) -> Credentials:
    """CodaLab's `--password-file`: a line with the user, a line with the password, mode 0600.

    Raises UsageError when others may read it, or it is not two lines.
    """
    try:
        if os.stat(path).st_mode & 0o077:
            raise UsageError(f"others may read the password file {path}: chmod 600 {path}")
        return _user_and_password(path)
    except OSError as error:
        raise UsageError(f"the password file {path} cannot be read: {error.strerror}") from error


def _user_and_password(path: str | os.PathLike[str]) -> Credentials:
    lines = Path(path).read_text().splitlines()
    if len(lines) < 2 or not lines[0].strip() or not lines[1].strip():
        raise UsageError(f"the password file {path} must hold two lines: user, password")
    return Credentials(username=lines[0].strip(), password=lines[1].strip())
