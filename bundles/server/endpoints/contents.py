"""Contents of bundles, up and down: from the store, or from the worker while a bundle runs."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from bundles.archive import check_path, compress, packing
from bundles.errors import BundlesError, DiskFull, NotFound, ServerFault, UsageError
from bundles.model import FINAL_STATES, State
from bundles.server import actions, queries
from bundles.server.accounts import Caller
from bundles.server.rendering import document
from bundles.server.service import Service, empty, read_json, reply, route
from bundles.server.sockets import Answer
from bundles.server.store import (
    Received,
    Store,
    describe,
    find,
    pack_directory,
    readable,
    receive,
    sha256_in,
)

ARCHIVES = (".tar.gz", ".tgz", ".tar")
"""What is unpacked on arrival, unless `unpack=0`."""
MEMORY_BYTES = 1024**2
"""Uploads up to here are never written as an archive, and downloads up to here are sent whole."""
CHUNK_BYTES = 256 * 1024
LARGEST_DEPTH = 100
EMPTY_ARCHIVE = gzip.compress(bytes(2 * tarfile.BLOCKSIZE))
GZIP_WINDOW_BITS = 31
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_READABLE_AT_WORKER = (State.PREPARING, State.RUNNING, State.FINALIZING)


def routes(service: Service) -> list[BaseRoute]:
    blob = "/bundles/{uuid}/contents/blob"
    info = "/bundles/{uuid}/contents/info"
    found: list[BaseRoute] = []
    for path in ("/{path:path}", ""):
        found += [
            route(service, "PUT", blob + path, _upload, is_worker_allowed=True),
            route(service, "GET", blob + path, _download, is_worker_allowed=True),
            route(service, "GET", info + path, _info, is_worker_allowed=True),
        ]
    found.append(route(service, "PUT", "/bundles/{uuid}/netcat/{port:int}/", _netcat))
    found.append(route(service, "PUT", "/bundles/{uuid}/netcat/{port:int}", _netcat))
    return found


# Up


async def _upload(service: Service, request: Request, caller: Caller) -> Response:
    uuid = request.path_params["uuid"]
    parameters = request.query_params
    if request.path_params.get("path"):
        raise UsageError("contents are uploaded whole: leave the path out")
    claim = _claim(parameters.get("claim"))
    filename = os.path.basename(parameters.get("filename") or "contents")
    is_archive = filename.lower().endswith(ARCHIVES) and parameters.get("unpack", "1") != "0"
    finalize = parameters.get("finalize_on_success", "0") == "1"
    store = service.store
    places: list[Path] = []

    def new_place() -> Path:
        places.append(store.open())
        return places[-1]

    is_clean = False
    # Before anything is sent, or unpacked, for nothing.
    await service.act(lambda books: actions.check_upload(books, caller, uuid, claim).id)
    try:
        stream = await _arrive(service, request, new_place)
        place = new_place()

        def put() -> tuple[str, Received]:
            try:
                received = receive(stream, place, archive=is_archive)
            finally:
                stream.close()
            return store.commit(place, uuid, received.sha256), received

        try:
            location, received = await service.store_io(put)
        except UsageError as error:
            sentence = str(error)
            if finalize and claim is None:
                await service.act(lambda books: actions.fail_upload(books, caller, uuid, sentence))
            raise
        try:
            await service.act(
                lambda books: actions.commit_upload(
                    books,
                    caller,
                    uuid,
                    claim,
                    location=location,
                    is_directory=received.is_directory,
                    size_bytes=received.size_bytes,
                    finalize=finalize,
                )
            )
        except ServerFault:
            raise  # it may have been committed all the same: the next start looks
        except BundlesError:
            await service.store_io(lambda: store.delete(location))
            raise
        is_clean = len(places) == 1  # and what lay there has its own name in the store now
    except DiskFull as error:
        if not await service.disk_io(store.make_room):
            raise
        raise ServerFault("the server's disk was full and has more room now: try again") from error
    finally:
        if not is_clean and places:
            await service.disk_io(lambda: _discard(store, places))
    return empty()


def _discard(store: Store, places: list[Path]) -> None:
    for place in places:
        store.discard_open(place)


def _claim(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 9:
        raise UsageError(f"claim is {text!r}: it must be a whole number")
    return int(text)


async def _arrive(service: Service, request: Request, new_place: Callable[[], Path]) -> BinaryIO:
    """The body as a file: in memory if it is small, else at a temporary place of the store."""
    buffer = bytearray()
    file: BinaryIO | None = None

    def write(chunk: bytes) -> None:
        nonlocal file
        if file is None:
            file = open(new_place(), "x+b")  # noqa: SIM115
        file.write(chunk)

    try:
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) > MEMORY_BYTES:
                piece = bytes(buffer)
                await service.disk_io(lambda piece=piece: write(piece))  # type: ignore[misc]
                buffer.clear()
        if file is None:
            return io.BytesIO(bytes(buffer))
        await service.disk_io(lambda: write(bytes(buffer)))
        file.seek(0)
    except BaseException:
        if file is not None:
            file.close()
        raise
    return file


# Down


async def _find(service: Service, request: Request, caller: Caller) -> Mapping[str, Any]:
    """The bundle whose contents the caller may read."""
    uuid = request.path_params["uuid"]
    row = await service.read(queries.contents_row, uuid)
    if row is not None and not caller.may_use(row["owner_id"]):
        is_allowed = await service.act(lambda books: actions.may_read_contents(books, caller, uuid))
        if not is_allowed:
            row = None
    if row is None:
        raise NotFound(f"there is no bundle {uuid} of yours")
    return row


def _ended_with_nothing(row: Mapping[str, Any], path: str) -> bool:
    """A run that ended before it wrote anything is an empty directory: runs that allow failed
    dependencies may depend on it."""
    is_over = row["state"] in (State.FAILED, State.KILLED) and row["bundle_type"] == "run"
    return is_over and row["location"] is None and not path


def _no_contents(row: Mapping[str, Any]) -> NotFound:
    if row["state"] == State.WORKER_OFFLINE:
        return NotFound("its worker is not heard of: the contents cannot be read now")
    return NotFound(f"the bundle {row['uuid']} is {row['state']} and has no contents")


async def _info(service: Service, request: Request, caller: Caller) -> Response:
    row = await _find(service, request, caller)
    path = check_path(request.path_params.get("path") or "")
    text = request.query_params.get("depth") or "0"
    if not text.isdigit() or int(text) > LARGEST_DEPTH:
        raise UsageError(f"depth is {text!r}: it must be a number from 0 to {LARGEST_DEPTH}")
    depth = int(text)
    if row["location"] is not None:
        location = row["location"]

        root = await service.hold(location)

        def look() -> dict[str, Any]:
            found = describe(root, find(root, path), depth)
            if not path:
                found["name"] = row["name"] or row["uuid"]
            return found

        try:
            info = await service.disk_io(look)
        finally:
            service.release(location)
    elif _ended_with_nothing(row, path):
        info = {"name": row["name"] or row["uuid"], "type": "directory", "size": 0, "perm": 0o755}
        info |= {"contents": []} if depth else {}
    else:
        info = await _ask_info(service, row, path, depth)
    target = {"bundle_uuid": row["uuid"], "subpath": path}
    return reply(document({**info, "resolved_target": target}))


async def _ask(
    service: Service, row: Mapping[str, Any], path: str, read_args: Mapping[str, Any]
) -> Answer:
    return await _ask_worker(service, row, "read", path=path, read_args=read_args)


async def _ask_worker(
    service: Service, row: Mapping[str, Any], kind: str, **question: Any
) -> Answer:
    if row["state"] not in _READABLE_AT_WORKER or row["worker_id"] is None:
        raise _no_contents(row)
    worker_id = row["worker_id"]
    user_id = await service.act(
        lambda books: books.workers[worker_id].user_id if worker_id in books.workers else None
    )
    if user_id is None:
        raise _no_contents(row)
    message = {"type": kind, "uuid": row["uuid"], "claim": row["claim"], **question}
    return await service.sockets.ask(worker_id, user_id, message)


async def _ask_info(
    service: Service, row: Mapping[str, Any], path: str, depth: int
) -> dict[str, Any]:
    answer = await _ask(service, row, path, {"type": "get_target_info", "depth": depth})
    info = (answer.document or {}).get("target_info")
    if not isinstance(info, Mapping) or "type" not in info:
        raise ServerFault("the worker's answer cannot be understood")
    return dict(info)


async def _download(service: Service, request: Request, caller: Caller) -> Response:
    row = await _find(service, request, caller)
    path = check_path(request.path_params.get("path") or "")
    is_gzip_accepted = "gzip" in request.headers.get("accept-encoding", "")
    section = _read_range(request.headers.get("range"))
    if _ended_with_nothing(row, path):
        headers = _headers(f"{row['name'] or row['uuid']}.tar.gz", "directory", 0)
        headers["Content-Encoding"] = "identity"
        return Response(EMPTY_ARCHIVE, 200, headers, "application/gzip")
    if row["location"] is None:
        return await _download_running(service, row, path, section, is_gzip_accepted)
    location = row["location"]
    root = await service.hold(location)
    try:
        response = await _download_kept(
            service, request, row, path, root, section, is_gzip_accepted
        )
    except BaseException:
        service.release(location)
        raise
    if isinstance(response, StreamingResponse):
        return _Held(response, lambda: service.release(location))
    service.release(location)
    return response


class _Held(Response):
    """A reply whose body is read while it is sent: what is read is let go only after that."""

    def __init__(self, response: StreamingResponse, release: Callable[[], None]) -> None:
        self._response = response
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._release()


async def _download_kept(
    service: Service,
    request: Request,
    row: Mapping[str, Any],
    path: str,
    root: Path,
    section: tuple[int | None, int | None] | None,
    is_gzip_accepted: bool,
) -> Response:
    location = row["location"]
    # A worker that shares the file system writes what is read here meanwhile.
    is_final = row["state"] in FINAL_STATES

    def look() -> tuple[Path, bool, int]:
        found = readable(root, find(root, path))
        is_directory = found.is_dir()
        return found, is_directory, 0 if is_directory else found.stat().st_size

    found, is_directory, size_bytes = await service.disk_io(look)
    name = os.path.basename(path) or row["name"] or row["uuid"]
    if is_directory:
        if not path and row["size_bytes"] is not None:
            size_bytes = row["size_bytes"]
        headers = _headers(f"{name}.tar.gz", "directory", size_bytes)
        headers["Content-Encoding"] = "identity"
        if is_final:
            headers["ETag"] = _tag(location, path, packing())
        return _send_directory(request, found, headers)
    headers = _headers(name, "file", size_bytes)
    if is_gzip_accepted and section is None:
        headers["Content-Encoding"] = "gzip"
        if size_bytes > MEMORY_BYTES:
            compressed = compress(_section(found, 0, size_bytes))
            return StreamingResponse(compressed, 200, headers, "application/octet-stream")
        content = await service.disk_io(lambda: b"".join(compress([found.read_bytes()])))
        return Response(content, 200, headers, "application/octet-stream")
    if is_final:
        headers["ETag"] = _tag(location, path)
    headers["Accept-Ranges"] = "bytes"
    sha256 = None if path else sha256_in(location)
    if sha256 is not None:
        headers["Repr-Digest"] = f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:"
    if section is not None and request.headers.get("if-range") in (None, headers.get("ETag")):
        first, end = _clip(section, size_bytes)
        if end <= first:
            return _beyond(headers, size_bytes)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size_bytes}"
        status = 206
    else:
        first, end, status = 0, size_bytes, 200
    if end - first <= MEMORY_BYTES:
        content = await service.disk_io(lambda: b"".join(_section(found, first, end)))
        return Response(content, status, headers, "application/octet-stream")
    headers["Content-Length"] = str(end - first)
    chunks = _section(found, first, end)
    return StreamingResponse(chunks, status, headers, "application/octet-stream")


def _tag(location: str, *rest: str) -> str:
    """Contents at a location never change, so that its name will do for them."""
    return f'"{sha256_of(chr(0).join([location, *rest]).encode()).hexdigest()[:32]}"'


def _beyond(headers: dict[str, str], size_bytes: int | None) -> Response:
    whole = "*" if size_bytes is None else size_bytes
    sentence = b"the range begins at the end of the file, or after it"
    return Response(sentence, 416, {**headers, "Content-Range": f"bytes */{whole}"}, "text/plain")


def _send_directory(request: Request, found: Path, headers: dict[str, str]) -> Response:
    """As a tar.gz, or what of it comes after the first ``skip`` bytes.

    Not a Range: a 206 has to name the last byte, and how long it gets is not known before.
    """
    text = request.query_params.get("skip") or "0"
    if not text.isdigit() or len(text) > 18:
        raise UsageError(f"skip is {text!r}: it must be a number of bytes")
    chunks = pack_directory(found)
    if int(text) and "ETag" in headers and request.headers.get("if-range") == headers["ETag"]:
        headers["Bundles-Skipped"] = text
        chunks = _after(chunks, int(text))
    return StreamingResponse(chunks, 200, headers, "application/gzip")


def _after(chunks: Iterator[bytes], skip_bytes: int) -> Iterator[bytes]:
    left = skip_bytes
    for chunk in chunks:
        if left < len(chunk):
            yield chunk[left:]
        left = max(0, left - len(chunk))


def _headers(name: str, kind: str, size_bytes: int | None) -> dict[str, str]:
    headers = {
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}",
        "Target-Type": kind,
    }
    if size_bytes is not None:
        headers["X-Codalab-Target-Size"] = str(size_bytes)
    return headers


def _read_range(header: str | None) -> tuple[int | None, int | None] | None:
    """(first, last), both included; (None, n) means the last n bytes."""
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or header.strip() == "bytes=-":
        raise UsageError(f"the range {header!r} is not understood: write bytes=FIRST-LAST")
    first, last = (int(text) if text else None for text in match.groups())
    if first is not None and last is not None and last < first:
        raise UsageError(f"the range {header!r} ends before it begins")
    return first, last


def _clip(section: tuple[int | None, int | None], size_bytes: int) -> tuple[int, int]:
    """First byte and the one after the last; the same for a range that begins at the end."""
    first, last = section
    if first is None:
        return max(0, size_bytes - (last or 0)), size_bytes
    end = size_bytes if last is None else min(size_bytes, last + 1)
    return min(first, size_bytes), max(min(first, size_bytes), end)


def _section(path: Path, first: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        left = end - first
        while left > 0:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


# From a worker


async def _download_running(
    service: Service,
    row: Mapping[str, Any],
    path: str,
    section: tuple[int | None, int | None] | None,
    is_gzip_accepted: bool,
) -> Response:
    info = await _ask_info(service, row, path, 0)
    name = os.path.basename(path) or row["name"] or row["uuid"]
    if info["type"] == "directory":
        answer = await _ask(service, row, path, {"type": "stream_directory"})
        headers = _headers(f"{name}.tar.gz", "directory", None)
        headers["Content-Encoding"] = "identity"
        return StreamingResponse(answer.read(), 200, headers, "application/gzip")
    size_bytes = info.get("size") if isinstance(info.get("size"), int) else None
    if section is not None:
        first, end = _clip(section, size_bytes or 0)
        headers = _headers(name, "file", size_bytes)
        if end <= first:
            return _beyond(headers, size_bytes)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size_bytes}"
        asked = {"type": "read_file_section", "offset": first, "length": end - first}
        answer = await _ask(service, row, path, asked)
        return StreamingResponse(_plain(answer), 206, headers, "application/octet-stream")
    answer = await _ask(service, row, path, {"type": "stream_file"})
    headers = _headers(name, "file", size_bytes)
    if is_gzip_accepted:
        headers["Content-Encoding"] = "gzip"
        return StreamingResponse(answer.read(), 200, headers, "application/octet-stream")
    return StreamingResponse(_plain(answer), 200, headers, "application/octet-stream")


async def _plain(answer: Answer) -> AsyncIterator[bytes]:
    """The worker's bytes with its gzip undone."""
    decompressor = zlib.decompressobj(GZIP_WINDOW_BITS)
    async for chunk in answer.read():
        if piece := decompressor.decompress(chunk):
            yield piece
    if piece := decompressor.flush():
        yield piece


async def _netcat(service: Service, request: Request, caller: Caller) -> Response:
    row = await _find(service, request, caller)
    body = await read_json(request)
    message = body.get("message") if isinstance(body, Mapping) else None
    if not isinstance(message, str):
        raise UsageError('the body must be {"message": …}')
    port = request.path_params["port"]
    if not 0 < port < 65536:
        raise UsageError(f"there is no port {port}")
    answer = await _ask_worker(service, row, "netcat", port=port, message=message)
    return StreamingResponse(answer.read(), 200, None, "application/octet-stream")
