"""Users, groups and tokens as they are in memory, and how passwords and tokens are kept.

Changed only by the thread that writes; read from any. Only digests are kept, never a secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

ROOT_ID = "0"
ROOT_NAME = "admin"

ACCESS_SECONDS = 3600.0
REFRESH_SECONDS = 30 * 86400.0
WORKER_SECONDS = 86400.0
"""A worker's token is good for this long after its last use."""
WORKER_RENEWAL_SECONDS = 3600.0
"""The use of a worker's token is written down this often at most."""

_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "maxmem": 64 * 1024**2}


@dataclass(frozen=True, slots=True)
class User:
    """Someone who may own bundles. ``password``: salt and scrypt digest, None for no login."""

    id: str
    name: str
    password: str | None = None
    is_root: bool = False
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token. ``kind``: home, given (at the server's start), access, refresh or worker;
    ``expires``: None for never."""

    digest: str
    user_id: str
    kind: str
    expires: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """Users who may use each other's workers."""

    id: str
    name: str
    owner_id: str
    members: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. ``digest``: of the token it came with."""

    user: User
    is_worker: bool
    digest: str

    @property
    def id(self) -> str:
        return self.user.id

    @property
    def is_root(self) -> bool:
        """May do anything a user may; a worker of root may not."""
        return self.user.is_root and not self.is_worker

    def may_use(self, owner_id: str) -> bool:
        """Whether a bundle of this owner is theirs to see and to act on."""
        return self.is_root or (self.user.id == owner_id and not self.is_worker)


@dataclass(slots=True)
class Accounts:
    """All of them, by what they are looked up by."""

    users: dict[str, User] = field(default_factory=dict)
    by_name: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    @classmethod
    def of(
        cls, users: Iterable[User], tokens: Iterable[Token], groups: Iterable[Group]
    ) -> Accounts:
        accounts = cls()
        for user in users:
            accounts.add_user(user)
        accounts.tokens.update((token.digest, token) for token in tokens)
        accounts.groups.update((group.name, group) for group in groups)
        return accounts

    def add_user(self, user: User) -> None:
        self.users[user.id] = user
        self.by_name[user.name] = user

    def bearer(self, token: str, now: float) -> Token | None:
        """The token that these characters are, unless it has expired or cannot open a door."""
        found = self.tokens.get(digest(token))
        if found is None or found.kind == "refresh":
            return None
        if found.expires is not None and found.expires <= now:
            return None
        return found


def new_token() -> str:
    """30 random characters, as CodaLab's."""
    return secrets.token_urlsafe(24)[:30]


def digest(token: str) -> str:
    """What is kept of a token. It is random, so one round of sha256 is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


def hash_password(password: str) -> str:
    """`scrypt$salt$digest`; takes some tens of milliseconds on purpose."""
    salt = secrets.token_bytes(16)
    key = hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT)
    return f"scrypt${_text(salt)}${_text(key)}"


def check_password(password: str, kept: str | None) -> bool:
    """Whether it is the password; takes as long for a user who has none."""
    _, salt, key = (kept or hash_password("")).split("$")
    tried = hashlib.scrypt(password.encode(), salt=base64.b64decode(salt), **_SCRYPT)
    return hmac.compare_digest(tried, base64.b64decode(key)) and kept is not None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
