"""What workers say and ask: check-in, check-out, answers; and who the workers are."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from bundles.errors import BundlesError, UsageError
from bundles.server import checkin
from bundles.server.accounts import Caller
from bundles.server.books import POLL_SECONDS, Books
from bundles.server.entries import Worker
from bundles.server.rendering import document
from bundles.server.requests import Checkin, Checkout, Drain, StartBundle, parse
from bundles.server.service import Service, empty, read_json, reply, route
from bundles.server.sockets import Answer

LARGEST_WORKER_ID = 200
LARGEST_HEADER_BYTES = 64 * 1024
LEASE_HEADER = "Bundles-Worker-Lease"
COUNTING_SECONDS = 5.0
"""How long a check-in waits until what a run wrote is counted."""


def routes(service: Service) -> list[BaseRoute]:
    async def doorbell(websocket: WebSocket) -> None:
        await _ring(service, websocket)

    def for_workers(methods: str, path: str, handler: Any) -> BaseRoute:
        return route(service, methods, "/workers/" + path, handler, is_worker_allowed=True)

    return [
        for_workers("POST", "{worker_id:path}/checkin", _check_in),
        for_workers("POST", "{worker_id:path}/checkout", _check_out),
        route(service, "POST", "/workers/{worker_id:path}/drain", _drain),
        for_workers("POST", "{worker_id:path}/start_bundle/{uuid}", _start_bundle),
        for_workers("POST", "{worker_id:path}/reply/{number:int}", _reply),
        for_workers("POST", "{worker_id:path}/reply_data/{number:int}", _reply_data),
        route(service, "GET", "/workers/info", _info),
        WebSocketRoute("/ws/worker/{worker_id:path}", doorbell),
    ]


def _worker_id(request: Request) -> str:
    worker_id: str = request.path_params["worker_id"]
    if not worker_id or len(worker_id) > LARGEST_WORKER_ID or "\0" in worker_id:
        raise UsageError(f"a worker id has 1 to {LARGEST_WORKER_ID} characters")
    return worker_id


async def _check_in(service: Service, request: Request, caller: Caller) -> Response:
    worker_id = _worker_id(request)
    said = parse(Checkin, await read_json(request), "the check-in")
    sizes_bytes = await _count_in_place(service, worker_id, said)
    receipt = await service.act(
        lambda books: checkin.check_in(books, caller, worker_id, said, sizes_bytes)
    )
    if receipt.is_batch:
        asked = said.wait_seconds or 0.0
        # Held no longer than half a lease, or a worker that waits would seem to be gone.
        wait_seconds = min(asked, service.worker_timeout_seconds / 2)
        answer = reply(await service.mailroom.collect(worker_id, receipt.session, wait_seconds))
        answer.headers[LEASE_HEADER] = f"{service.worker_timeout_seconds:g}"
        return answer
    wait_seconds = min(POLL_SECONDS, service.worker_timeout_seconds / 2)
    # CodaLab's worker does nothing for its runs while its check-in is held.
    if said.runs and service.mailroom.has_bell(worker_id):
        wait_seconds = 0.0
    return reply([await service.mailroom.collect_one(worker_id, wait_seconds)])


async def _count_in_place(service: Service, worker_id: str, said: Checkin) -> dict[str, int]:
    if not said.shared_file_system:
        return {}
    store = service.shared_store
    if store is None:
        raise UsageError(
            "this server keeps contents where no worker has them: start the worker without "
            "--shared-file-system"
        )
    if not said.runs:
        return {}
    found = await service.act(lambda books: checkin.written_in_place(books, worker_id, said))
    if not found:
        return {}
    sizes_bytes: dict[str, int] = {}

    def count() -> None:
        for uuid, location in found.items():
            sizes_bytes[uuid] = store.measure(location)

    with suppress(TimeoutError):  # then the worker's own figure does
        await asyncio.wait_for(service.disk_io(count), COUNTING_SECONDS)
    return dict(sizes_bytes)


async def _check_out(service: Service, request: Request, caller: Caller) -> Response:
    worker_id = _worker_id(request)
    said = parse(Checkout, await read_json(request), "the check-out")
    taken = await service.act(lambda books: checkin.check_out(books, caller, worker_id, said))
    return reply({"restaged": taken.restaged, "ended": taken.ended})


async def _drain(service: Service, request: Request, caller: Caller) -> Response:
    worker_id = _worker_id(request)
    said = parse(Drain, await read_json(request))
    await service.act(lambda books: checkin.drain(books, caller, worker_id, said))
    return empty()


async def _start_bundle(service: Service, request: Request, caller: Caller) -> Response:
    worker_id, uuid = _worker_id(request), request.path_params["uuid"]
    said = parse(StartBundle, await read_json(request))
    is_started = await service.act(
        lambda books: checkin.start_bundle(books, caller, worker_id, uuid, said)
    )
    return reply(is_started)


async def _reply(service: Service, request: Request, caller: Caller) -> Response:
    found = await read_json(request)
    if not isinstance(found, dict):
        raise UsageError("an answer must be a JSON object")
    socket = service.sockets.find(request.path_params["number"], _worker_id(request), caller.id)
    if not socket.answer.done():
        socket.answer.set_result(Answer(document=found))
    return empty()


async def _reply_data(service: Service, request: Request, caller: Caller) -> Response:
    socket = service.sockets.find(request.path_params["number"], _worker_id(request), caller.id)
    try:
        header = orjson.loads(request.query_params.get("header_message") or "{}")
    except orjson.JSONDecodeError:
        raise UsageError("header_message is not JSON") from None
    if not isinstance(header, dict):
        raise UsageError("header_message must be a JSON object")
    answer = Answer(header=header)
    if socket.answer.done():
        return empty()
    socket.answer.set_result(answer)
    try:
        async for chunk in request.stream():
            if chunk:
                await answer.put(chunk)
    except Exception:
        answer.cut()
        raise
    await answer.put(None)
    return empty()


async def _info(service: Service, request: Request, caller: Caller) -> Response:
    def list_workers(books: Books) -> list[dict[str, Any]]:
        return [
            _describe(books, worker)
            for worker in sorted(books.workers.values(), key=lambda worker: worker.id)
            if worker.is_live and _may_see(books, caller, worker)
        ]

    return reply(document(await service.act(list_workers)))


def _may_see(books: Books, caller: Caller, worker: Worker) -> bool:
    if caller.is_root or worker.user_id == caller.id:
        return True
    group = books.accounts.groups.get(worker.facts.get("group_name") or "")
    return group is not None and caller.id in group.members


def _describe(books: Books, worker: Worker) -> dict[str, Any]:
    facts = worker.facts
    group = books.accounts.groups.get(facts.get("group_name") or "")
    cpus_in_use, gpus_in_use, memory_bytes_in_use = books.scheduler.in_use(worker.id)
    return {
        "user_id": worker.user_id,
        "worker_id": worker.id,
        "group_uuid": group.id if group else None,
        "tag": facts.get("tag") or None,
        "cpus": facts.get("cpus"),
        "gpus": facts.get("gpus"),
        "memory_bytes": facts.get("memory_bytes"),
        "free_disk_bytes": worker.free_disk_bytes,
        "checkin_time": int(worker.seen),
        "socket_id": None,
        "run_uuids": sorted(worker.assigned),
        "shared_file_system": facts.get("shared_file_system", False),
        "tag_exclusive": facts.get("tag_exclusive", False),
        "exit_after_num_runs": worker.runs_left,
        "is_terminating": worker.is_terminating,
        "is_draining": worker.is_draining,
        "seconds_left": _seconds_left(books, worker),
        "preemptible": worker.is_preemptible,
        "hostname": facts.get("hostname"),
        "cpus_in_use": cpus_in_use,
        "gpus_in_use": gpus_in_use,
        "memory_bytes_in_use": memory_bytes_in_use,
    }


def _seconds_left(books: Books, worker: Worker) -> float | None:
    """None: it has said of no end."""
    return None if math.isinf(worker.end) else max(0.0, worker.end - books.instant)


async def _ring(service: Service, websocket: WebSocket) -> None:
    """The doorbell of CodaLab's worker: a text whenever a message waits for it. Nothing more can
    be learned or done here, so it asks for no token, as CodaLab's does not."""
    worker_id = websocket.path_params["worker_id"]
    await websocket.accept()
    bell = asyncio.Event()

    async def send() -> None:
        while True:
            await bell.wait()
            bell.clear()
            await websocket.send_text(worker_id)

    service.mailroom.add_bell(worker_id, bell.set)
    sender = asyncio.create_task(send())
    try:
        while True:
            await websocket.receive_text()  # "a", every ten seconds: it lives
    except (WebSocketDisconnect, BundlesError, RuntimeError, KeyError):
        pass
    finally:
        sender.cancel()
        service.mailroom.remove_bell(worker_id, bell.set)
