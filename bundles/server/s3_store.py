"""Contents of bundles in S3: a file is an object, a directory one too, as a tar.gz. What arrives
and what is read lies in a cache on this server's disk.

A location is what it is in a directory (bundles/server/store.py), and the object's key after the
prefix; a directory's has `.tar.gz` besides. `database` says whose the prefix is.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from bundles.archive import pack, unpack
from bundles.errors import NotFound, ServerFault, UsageError
from bundles.server.bucket import Bucket, Head
from bundles.server.cache import Cache
from bundles.server.places import S3Place
from bundles.server.store import (
    LOCATION,
    MARK,
    StoreFault,
    check_mark,
    not_ours,
    remove,
    sha256_in,
)

log = logging.getLogger(__name__)

ARCHIVE = ".tar.gz"
MADE = "made"
"""Metadata of a directory: the time, in whole seconds since the epoch, that its directories and
links have, of which unpacking keeps none. So that it is packed into the same bytes wherever and
whenever it is fetched, and a download that was cut goes on."""


class S3Store:
    """A Store. Truth is in the bucket: the cache may be lost at any time but while it is held."""

    def __init__(self, bucket: Bucket, cache: Cache) -> None:
        self._bucket = bucket
        self._cache = cache

    @classmethod
    def open_at(cls, place: S3Place, *, cache: Path, cache_bytes: int) -> Self:
        """Raises ServerFault when boto3 is missing."""
        return cls(Bucket(place), Cache(cache, cache_bytes))

    def prepare(self, identity: str) -> None:
        self._take_possession(identity)
        self._cache.prepare()
        count = self._bucket.abort_uploads(lambda key: _location(key) is not None)
        if count:
            log.info("removed the parts of %d uploads that were cut off", count)

    def _take_possession(self, identity: str) -> None:
        try:
            mark = self._bucket.read(MARK)
        except NotFound:
            if next(self._bucket.list_keys(), None) is not None:
                raise not_ours(str(self._bucket)) from None
            self._bucket.write(MARK, identity)
            mark = self._bucket.read(MARK)  # another server may have been as quick
        check_mark(str(self._bucket), mark, identity)

    def close(self) -> None:
        self._bucket.close()

    def open(self) -> Path:
        return self._cache.new_place()

    def discard_open(self, place: Path) -> None:
        remove(place)

    def commit(self, place: Path, uuid: str, sha256: str | None = None) -> str:
        location = f"{uuid[2:4]}/{uuid}-{place.name}" + (f"-{sha256}" if sha256 else "")
        if sha256:
            self._put(place, location, {})
        else:
            made = int(time.time())
            _set_times(place, made)
            packed = self._cache.new_place()
            try:
                with packed.open("xb") as file:
                    for chunk in pack(place):
                        file.write(chunk)
                self._put(packed, location, {MADE: str(made)})
            finally:
                remove(packed)
        self._cache.add(location, place)
        return location

    def _put(self, file: Path, location: str, metadata: dict[str, str]) -> None:
        sent_bytes = file.stat().st_size
        try:
            self._bucket.upload(file, _key(location), metadata)
        except StoreFault:
            # Its last reply may be all that was lost: no other upload has this key.
            if self._kept_bytes(location) != sent_bytes:
                raise
        kept_bytes = self._kept_bytes(location)
        if kept_bytes != sent_bytes:
            raise ServerFault(
                f"the store kept {kept_bytes} bytes of the {sent_bytes} it was sent: try again"
            )

    def _kept_bytes(self, location: str) -> int:
        try:
            return self._bucket.head(_key(location)).size_bytes
        except NotFound:
            return 0

    def make_room(self) -> bool:
        return self._cache.make_room()

    def hold(self, location: str) -> Path | None:
        return self._cache.hold(location)

    def release(self, location: str) -> None:
        self._cache.release(location)

    def fetch(self, location: str) -> None:
        head = self._head(location)
        try:
            self._bring(location, head)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.make_room():
                raise
            self._bring(location, head)

    def _head(self, location: str) -> Head:
        try:
            return self._bucket.head(_key(location))
        except NotFound:
            self.check()  # it is not the bucket that is missing
            log.error("there is no object %s at %s", _key(location), self._bucket)
            raise NotFound(
                "the contents of this bundle are missing in the store: the server's log says where"
            ) from None

    def _bring(self, location: str, head: Head) -> None:
        sha256 = sha256_in(location)
        file = self._cache.new_place()
        place = file if sha256 else self._cache.new_place()
        try:
            self._bucket.download(_key(location), file)
            if file.stat().st_size != head.size_bytes:
                raise self._damaged(location, "its size is wrong")
            if sha256:
                if _sha256_of(file) != sha256:
                    raise self._damaged(location, "its SHA-256 is wrong")
            else:
                place.mkdir(mode=0o700)
                try:
                    with file.open("rb") as stream:
                        unpack(stream, place)
                except UsageError as error:
                    raise self._damaged(location, str(error)) from error
                made = head.metadata.get(MADE, "")
                _set_times(place, int(made) if made.isdigit() else 0)
            self._cache.add(location, place)
        finally:
            remove(file)
            remove(place)

    def _damaged(self, location: str, reason: str) -> ServerFault:
        log.error("the object %s at %s is damaged: %s", _key(location), self._bucket, reason)
        return ServerFault(
            "the contents of this bundle are damaged in the store: the server's log says where"
        )

    def delete(self, location: str) -> None:
        self._cache.drop(location)
        self._bucket.delete(_key(location))

    def list(self) -> Iterator[str]:
        for key in self._bucket.list_keys():
            location = _location(key)
            if location is not None:
                yield location

    def check(self) -> None:
        try:
            self._bucket.read(MARK)
        except NotFound:
            raise ServerFault(f"the store of contents, {self._bucket}, is not there any more: "
                              f"its object {MARK} is gone") from None  # fmt: skip


def _key(location: str) -> str:
    return location if sha256_in(location) else location + ARCHIVE


def _location(key: str) -> str | None:
    """None for a key that is none of ours."""
    location = key.removesuffix(ARCHIVE)
    return location if LOCATION.fullmatch(location) and _key(location) == key else None


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_times(root: Path, made: int) -> None:
    """Of all that is no file: unpacking keeps a file's own."""
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                os.utime(path, (made, made), follow_symlinks=False)
