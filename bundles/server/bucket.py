"""One prefix of one S3 bucket: objects up, down, listed and removed; each call with time-outs and a
bounded number of attempts, and then one StoreFault. Knows nothing of bundles.

Region, endpoint and credentials are found by boto3, as of every program of AWS (`AWS_REGION`,
`AWS_ENDPOINT_URL`, the credential chain).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles.errors import BundlesError, NotFound, ServerFault
from bundles.server.places import S3Place
from bundles.server.store import StoreFault

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
"""Between two bytes of an answer; also how long the end of a server may have to wait for S3."""
ATTEMPTS = 4
PART_BYTES = 16 * 1024**2
"""Of larger objects; the SDK makes larger parts where this would make more than 10,000."""
CONCURRENT_REQUESTS = 10
CONNECTIONS = 32
DEFAULT_REGION = "us-east-1"
_MISSING = ("404", "NoSuchKey")


@dataclass(frozen=True, slots=True)
class Head:
    """``metadata``: what an object was uploaded with."""

    size_bytes: int
    metadata: Mapping[str, str]


class Bucket:
    """Keys are what comes after the prefix. Thread-safe."""

    def __init__(self, place: S3Place) -> None:
        """Asks nothing yet. Raises ServerFault when boto3 is missing or its configuration wrong."""
        self._place = place
        self._is_closing = False
        try:
            import boto3  # type: ignore[import-untyped]
            from boto3.s3.transfer import (  # type: ignore[import-untyped]
                TransferConfig,
                create_transfer_manager,
            )
            from botocore.config import Config  # type: ignore[import-untyped]
        except ImportError as error:
            raise ServerFault(
                "contents in S3 need boto3, which is not installed: "
                "pip install 'worker-manager[aws]'"
            ) from error
        with self._asking("reading the configuration of AWS"):
            session = boto3.Session()
            self._client = session.client(
                "s3",
                region_name=session.region_name or DEFAULT_REGION,
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                    max_pool_connections=CONNECTIONS,
                    user_agent_extra="worker-manager",
                ),
            )
            self._client.meta.events.register("before-send.s3", self._refuse_when_closing)
            self._transfers = create_transfer_manager(
                self._client,
                TransferConfig(
                    multipart_threshold=PART_BYTES,
                    multipart_chunksize=PART_BYTES,
                    max_concurrency=CONCURRENT_REQUESTS,
                    preferred_transfer_client="classic",
                ),
            )

    def __str__(self) -> str:
        return str(self._place)

    def close(self) -> None:
        """End transfers; who waits for one gets a ServerFault. Parts that an upload leaves behind
        are for ``abort_uploads``."""
        self._is_closing = True
        self._transfers.shutdown()  # soon, since nothing is asked any more

    def upload(self, path: Path, key: str, metadata: Mapping[str, str]) -> None:
        """A file, in parts if it is large. The SDK sends a checksum with each, which S3 checks."""
        with self._asking(f"uploading {key}"):
            self._transfers.upload(
                str(path), self._place.bucket, self._key(key), {"Metadata": dict(metadata)}
            ).result()

    def download(self, key: str, path: Path) -> None:
        """To a file, in parts if it is large. Raises NotFound."""
        with self._asking(f"downloading {key}"):
            self._transfers.download(self._place.bucket, self._key(key), str(path)).result()

    def head(self, key: str) -> Head:
        """Raises NotFound. A reply to HEAD has no body, so that a bucket that is gone looks like
        an object that is: who needs to know asks ``read`` of another."""
        with self._asking(f"looking at {key}"):
            found = self._client.head_object(Bucket=self._place.bucket, Key=self._key(key))
            return Head(found["ContentLength"], found["Metadata"])

    def read(self, key: str) -> str:
        """A small object. Raises NotFound."""
        with self._asking(f"reading {key}"):
            found = self._client.get_object(Bucket=self._place.bucket, Key=self._key(key))
            with found["Body"] as body:
                text: bytes = body.read()
            return text.decode(errors="replace")

    def write(self, key: str, text: str) -> None:
        """A small object."""
        with self._asking(f"writing {key}"):
            self._client.put_object(
                Bucket=self._place.bucket, Key=self._key(key), Body=text.encode()
            )

    def delete(self, key: str) -> None:
        """One that is gone already is no error."""
        with self._asking(f"removing {key}"):
            self._client.delete_object(Bucket=self._place.bucket, Key=self._key(key))

    def list_keys(self) -> Iterator[str]:
        """Every one, to the last page, or an error."""
        with self._asking("listing"):
            for page in self._pages("list_objects_v2"):
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._place.prefix)

    def abort_uploads(self, is_ours: Callable[[str], bool]) -> int:
        """Throw away the parts of uploads that nobody will complete; returns of how many."""
        count = 0
        with self._asking("listing abandoned uploads"):
            for page in self._pages("list_multipart_uploads"):
                for found in page.get("Uploads", ()):
                    if is_ours(found["Key"].removeprefix(self._place.prefix)):
                        self._client.abort_multipart_upload(
                            Bucket=self._place.bucket, Key=found["Key"], UploadId=found["UploadId"]
                        )
                        count += 1
        return count

    def _pages(self, operation: str) -> Any:
        paginator = self._client.get_paginator(operation)
        return paginator.paginate(Bucket=self._place.bucket, Prefix=self._place.prefix)

    def _key(self, key: str) -> str:
        return self._place.prefix + key

    def _refuse_when_closing(self, **_: Any) -> None:
        # Not a kind that the SDK tries again.
        if self._is_closing:
            raise ServerFault("the server ends: try again later")

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except BundlesError:
            raise
        except Exception as error:  # the SDK's have no base in common
            raise self._fault(error, doing) from error

    def _fault(self, error: Exception, doing: str) -> Exception:
        if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
            return error  # of the disk
        code = _code(error)
        if code in _MISSING:
            return NotFound(f"{self}: {doing}: there is no such object")
        if self._is_closing:
            return ServerFault("the server ends: try again later")
        return StoreFault(
            f"the store of contents, {self}, failed ({code}): try again",
            f"the store of contents, {self}, failed, {doing}: {' '.join(str(error).split())}",
        )


def _code(error: Exception) -> str:
    """S3's word for what went wrong, else the SDK's."""
    cause = getattr(error, "last_exception", None)  # of s3transfer, after many attempts
    response = getattr(cause or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code") or type(cause or error).__name__)
