"""Where `bundles serve --contents` says that contents are to lie, and the store for that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundles.errors import UsageError
from bundles.server.store import DirectoryStore, Store

DEFAULT_CACHE_BYTES = 10 * 1024**3
S3_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Amazon S3 User Guide, "General purpose bucket naming rules"."""
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")
"""The characters that the same guide calls safe in keys ("Naming Amazon S3 objects")."""


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, and what the keys in it begin with: "", or a text that ends with a slash."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> S3Place:
        """Of `s3://BUCKET/PREFIX`, or `s3://BUCKET`. Raises UsageError."""
        bucket, _, prefix = text.removeprefix(S3_SCHEME).partition("/")
        prefix = prefix.rstrip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
            raise UsageError(
                f"--contents is {text!r}: write s3://BUCKET/PREFIX, the bucket in lower case, the "
                "prefix of letters, digits, / and ! _ . * ' ( ) -"
            )
        return cls(bucket, f"{prefix}/" if prefix else "")

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def open_store(contents: str | None, cache_bytes: int | None, home: Path) -> Store:
    """``contents``: what --contents says, None for the home's own directory. Touches nothing yet.

    ``cache_bytes``: of the cache of S3. Raises UsageError, and ServerFault without boto3.
    """
    own = home / "contents"
    if contents is not None and contents.startswith(S3_SCHEME):
        place = S3Place.parse(contents)
        from bundles.server.s3_store import S3Store

        return S3Store.open_at(
            place,
            cache=home / "contents-cache",
            cache_bytes=DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes,
        )
    if cache_bytes is not None:
        raise UsageError("--contents-cache is for contents in S3: leave it out")
    if contents is None:
        return DirectoryStore(own)
    if not contents or "://" in contents:
        raise UsageError(
            f"--contents is {contents!r}: write s3://BUCKET/PREFIX, or the path of a directory"
        )
    root = Path(contents).expanduser().absolute()
    return DirectoryStore(root, is_given=root != own)
