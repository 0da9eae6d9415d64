"""`GET /healthz`: whether this server can do its work now, for who starts it anew or sends others
to it. Nobody has to say who they are, so it tells which part fails and why, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from bundles.errors import BundlesError, ServerFault
from bundles.server.fetching import disk_fault
from bundles.server.service import Service

log = logging.getLogger(__name__)

LASTING_SECONDS = 5.0
"""An answer is given again for so long: however many ask, little is asked for them."""
LOOKING_SECONDS = 5.0
"""What has not answered by then fails."""


def routes(service: Service) -> list[BaseRoute]:
    health = _Health(service)

    async def healthz(_: Request) -> Response:
        trouble = await health.trouble()
        return PlainTextResponse(trouble or "ok", 503 if trouble else 200)

    return [Route("/healthz", healthz, methods=["GET"])]


class _Health:
    """Looks by threads of its own, so that those of a busy server are not waited for: one for each
    part, so that a look that hangs is the only one."""

    def __init__(self, service: Service) -> None:
        self._clock = service.clock
        self._parts: dict[str, Callable[[], None]] = {
            "database": service.check_database,
            "store of contents": service.store.check,
        }
        self._threads = ThreadPoolExecutor(len(self._parts), thread_name_prefix="health")
        self._looks: dict[str, asyncio.Future[None]] = {}
        self._asking = asyncio.Lock()
        self._trouble = ""
        self._fresh_until = -math.inf

    async def trouble(self) -> str:
        """One line; "" when all is well."""
        async with self._asking:
            if self._clock.monotonic() >= self._fresh_until:
                faults = filter(None, await asyncio.gather(*map(self._look, self._parts)))
                self._say("; ".join(map(str, faults)))
                self._fresh_until = self._clock.monotonic() + LASTING_SECONDS
            return self._trouble

    async def _look(self, part: str) -> BundlesError | None:
        look = self._looks.get(part)
        if look is None or look.done():
            loop = asyncio.get_running_loop()
            look = self._looks[part] = loop.run_in_executor(self._threads, self._parts[part])
            look.add_done_callback(lambda look: look.cancelled() or look.exception())
        await asyncio.wait([look], timeout=LOOKING_SECONDS)
        if not look.done():
            return ServerFault(f"the {part} has not answered for {LOOKING_SECONDS:g} s")
        error = look.exception()
        if isinstance(error, OSError):
            return disk_fault(error)
        if error is None or isinstance(error, BundlesError):
            return error
        log.error("looking at the %s failed unexpectedly", part, exc_info=error)
        return BundlesError(f"the {part} failed unexpectedly: the log says more")

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("not healthy: %s", trouble)
        self._trouble = trouble
