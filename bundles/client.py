"""The REST client: one wire protocol for a CodaLab server and the embedded one.

Used by the CLI, the manager and the worker, each with its own credentials. Thread-safe. It knows
requests and replies; it does not know what a caller does with them.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import orjson
import tenacity

from bundles.codalab import HOME_WORKSHEET, completed
from bundles.errors import (
    BundlesError,
    NotAuthenticated,
    NotFound,
    ServerFault,
    Unreachable,
    UsageError,
    error_for_status,
)
from bundles.home import Credentials
from bundles.model import Bundle, Dependency, Resources, Shape
from bundles.replies import Change, Changes, Download, Mark, TargetInfo

T = TypeVar("T")

FEATURES_HEADER = "Bundles-Features"
WORKER_LEASE_HEADER = "Bundles-Worker-Lease"
CLIENT_ID = "codalab_cli_client"
WORKER_CLIENT_ID = "codalab_worker_client"

CONNECT_TIMEOUT_SECONDS = 10.0
REPLY_TIMEOUT_SECONDS = 60.0
POLL_MARGIN_SECONDS = 15.0
"""How much later than ``wait_seconds`` a long poll may be answered before it counts as lost."""
TOKEN_MARGIN_SECONDS = 300.0
"""A bearer token is renewed this long before it expires."""
LEASE_TIMEOUT_SECONDS = 5.0
"""A renewal that takes longer is tried again: a lease does not wait."""
PAGE_SIZE = 1000


@dataclass
class _Session:
    """The bearer token in use and when to renew it (of the monotonic clock)."""

    token: str | None = None
    expires: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """Speaks to one server with one set of credentials.

    ``patience_seconds``: how long calls that may be repeated without harm (reads, and creations
    that carry their uuid) are tried again, with jitter, while the server is away.

    Every method raises the exceptions of ``bundles.errors``: Unreachable when no answer came,
    ServerFault for 5xx, and the one that stands for the status otherwise.
    """

    def __init__(
        self,
        server: str,
        credentials: Credentials,
        *,
        client_id: str = CLIENT_ID,
        patience_seconds: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self.features: frozenset[str] = frozenset()
        """What the server offers beyond CodaLab's protocol (docs/protocol.md), as it last said."""
        self.clock_skew_seconds: float | None = None
        """How far the server's clock was ahead of ours at its first reply, to a second; None as
        long as it has not said."""
        self.worker_lease_seconds: float | None = None
        """How long after its last check-in a worker counts as gone; None where the server does
        not say."""
        self._credentials = credentials
        self._client_id = client_id
        self._patience_seconds = patience_seconds
        self._session = _Session()
        self._worksheet: str | None = None
        self._http = httpx.Client(
            base_url=self.server + "/rest/",
            headers={"X-Requested-With": "XMLHttpRequest"},
            timeout=httpx.Timeout(REPLY_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
            follow_redirects=False,
            trust_env=not _is_loopback(server),
            transport=transport,
        )

    def close(self) -> None:
        """Close every connection; calls under way in other threads end with Unreachable."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Requests

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        json: Any = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout_seconds: float = REPLY_TIMEOUT_SECONDS,
        repeatable: bool | None = None,
    ) -> httpx.Response:
        """One request, answered whole. ``repeatable`` (default: only GET) allows retries."""

        def once() -> httpx.Response:
            with self._stream(
                method,
                path,
                params=params,
                json=json,
                content=content,
                timeout_seconds=timeout_seconds,
            ) as response:
                return response

        if repeatable is None:
            repeatable = method == "GET"
        if not repeatable or self._patience_seconds <= 0:
            return once()
        return self._patiently(once)

    def _patiently(self, call: Callable[[], T]) -> T:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((Unreachable, ServerFault)),
            stop=tenacity.stop_after_delay(self._patience_seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.3),
            reraise=True,
        )(call)

    @contextmanager
    def _stream(
        self,
        method: str,
        path: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        json: Any = None,
        content: bytes | Iterable[bytes] | None = None,
        timeout_seconds: float = REPLY_TIMEOUT_SECONDS,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> Iterator[httpx.Response]:
        sent_headers = {"Authorization": f"Bearer {self._token()}", **(headers or {})}
        if json is not None:
            content = orjson.dumps(json)
            sent_headers["Content-Type"] = "application/json; charset=utf-8"
        request = self._http.build_request(
            method,
            path.lstrip("/"),
            params=list(params) or None,
            content=content,
            headers=sent_headers,
            timeout=httpx.Timeout(
                timeout_seconds, connect=min(timeout_seconds, CONNECT_TIMEOUT_SECONDS)
            ),
        )
        with self._open(request) as response:
            if response.status_code >= 300 and response.status_code != 303:
                response.read()
                if response.status_code == 401:
                    self._forget_token()
                raise error_for_status(response.status_code, _sentence(response))
            if not stream:
                response.read()
            yield response

    @contextmanager
    def _open(self, request: httpx.Request) -> Iterator[httpx.Response]:
        try:
            response = self._http.send(request, stream=True)
            try:
                offered = response.headers.get(FEATURES_HEADER)
                if offered is not None:
                    self.features = frozenset(name.strip() for name in offered.split(","))
                if self.clock_skew_seconds is None:
                    self.clock_skew_seconds = _clock_skew(response.headers.get("Date"))
                lease = response.headers.get(WORKER_LEASE_HEADER)
                if lease is not None:
                    self.worker_lease_seconds = _positive(lease)
                yield response
            finally:
                response.close()
        except (httpx.TransportError, httpx.StreamError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._http.is_closed:
                raise
            raise Unreachable(
                f"no answer from {self.server} ({type(error).__name__}: {error}): is the server "
                "running, and is its address right?"
            ) from error

    # Who we are

    def _token(self) -> str:
        if self._credentials.token:
            return self._credentials.token
        with self._session.lock:
            session = self._session
            if session.token is None or time.monotonic() > session.expires - TOKEN_MARGIN_SECONDS:
                session.token, session.expires = self._password_grant()
            return session.token

    def _forget_token(self) -> None:
        with self._session.lock:
            self._session.token = None

    def _password_grant(self) -> tuple[str, float]:
        if not self._credentials.username:
            raise NotAuthenticated(f"no credentials for {self.server}")
        basic = base64.b64encode(f"{self._client_id}:".encode()).decode()
        request = self._http.build_request(
            "POST",
            "oauth2/token",
            data={
                "grant_type": "password",
                "username": self._credentials.username,
                "password": self._credentials.password or "",
            },
            headers={"Authorization": f"Basic {basic}"},
        )
        with self._open(request) as response:
            response.read()
        if response.status_code in (400, 401):
            raise NotAuthenticated(
                f"{self.server} does not accept the password of {self._credentials.username!r}"
            )
        if response.status_code != 200:
            raise error_for_status(response.status_code, _sentence(response))
        try:
            document = orjson.loads(response.content)
            kind, token = document["token_type"], document["access_token"]
            valid_seconds = float(document.get("expires_in", 3600))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerFault(
                f"{self.server} answered a password with something else than a token: is it the "
                "address of a server of bundles?"
            ) from error
        if kind != "Bearer":
            raise ServerFault(f"{self.server} gave a token of type {kind!r}")
        return token, time.monotonic() + valid_seconds

    def whoami(self) -> dict[str, Any]:
        """`{"id", "user_name", "is_root_user", …}` of the caller."""
        data = self._json("GET", "user")["data"]
        return {"id": data.get("id"), **data["attributes"]}

    def add_user(self, name: str, password: str) -> None:
        """Make a user (administrators of an embedded server only). Raises Conflict for a taken
        name, or UsageError, as the server sees it."""
        attributes = {"user_name": name, "password": password}
        self._json("POST", "users", json={"data": {"type": "users", "attributes": attributes}})

    def worker_token(self, lease: str | None = None, fence: int = 0) -> str:
        """A token that can do what a worker does and nothing else (feature `tokens`).

        Asked for in the name of a ``lease``: refused with Conflict when that is not held with
        this ``fence`` any more.
        """
        proof = None if lease is None else {"lease": lease, "fence": fence}
        token: str = self._json("POST", "worker-tokens", json=proof)["data"]["attributes"]["token"]
        return token

    # Leases (feature `leases`)

    def acquire_leases(
        self, names: Sequence[str], holder: str, ttl_seconds: float, *, wait_seconds: float = 0.0
    ) -> dict[str, int]:
        """Take the leases of all these names, or none; their fences, by name.

        ``holder``: who takes them, unlike anybody else, and readable: others are told. Waits for
        those that are held; raises Conflict, which says by whom, when they still are after that.
        """
        document = self._json(
            "POST",
            "leases",
            json={
                "names": list(names),
                "holder": holder,
                "ttl_seconds": ttl_seconds,
                "wait_seconds": wait_seconds,
            },
            timeout_seconds=wait_seconds + POLL_MARGIN_SECONDS,
        )
        fences: dict[str, int] = document["data"]["attributes"]["fences"]
        return fences

    def renew_leases(self, fences: Mapping[str, int], holder: str) -> None:
        """Hold them for another while. Raises Conflict, and renews none, when one is lost."""
        self._tell_of_leases("leases/renew", fences, holder)

    def release_leases(self, fences: Mapping[str, int], holder: str) -> None:
        """Give them back: whoever waits has them at once."""
        self._tell_of_leases("leases/release", fences, holder)

    def _tell_of_leases(self, path: str, fences: Mapping[str, int], holder: str) -> None:
        self.request(
            "POST",
            path,
            json={"holder": holder, "fences": dict(fences)},
            timeout_seconds=LEASE_TIMEOUT_SECONDS,
        )

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self.request(method, path, **options)
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise ServerFault(f"{self.server} did not answer {path} with JSON") from error

    # Bundles

    def search(
        self, keywords: Sequence[str] = (), *, each_page: Callable[[], object] = lambda: None
    ) -> list[Bundle]:
        """Every bundle that the keywords select, read page by page until the end; ``each_page`` is
        called when one has come.

        With a `.limit=` of the caller's own, or with uuids, that is one page.
        """
        if any(word.startswith((".limit=", ".offset=")) for word in keywords):
            return self._search_page(keywords)
        found: dict[str, Bundle] = {}
        while True:
            page = self._search_page(
                [*keywords, "id=.sort", f".limit={PAGE_SIZE}", f".offset={len(found)}"]
            )
            each_page()
            before = len(found)
            found.update((bundle.uuid, bundle) for bundle in page)
            if len(page) < PAGE_SIZE or len(found) == before:
                return list(found.values())

    def _search_page(self, keywords: Sequence[str]) -> list[Bundle]:
        document = self._json(
            "GET",
            "bundles",
            params=[("include", "owner"), ("worksheet", "None")]
            + [("keywords", word) for word in keywords],
        )
        return _bundles(document)

    def count(self, keywords: Sequence[str] = ()) -> int:
        """How many bundles the keywords select."""
        document = self._json(
            "GET", "bundles", params=[("keywords", word) for word in (*keywords, ".count")]
        )
        return int(document["meta"]["result"])

    def shapes(self, keywords: Sequence[str] = ()) -> list[Shape]:
        """The bundles that the keywords select, grouped by what they ask for (feature `shapes`)."""
        document = self._json(
            "GET", "bundles", params=[("keywords", word) for word in (*keywords, ".shapes")]
        )
        return [
            Shape(
                resources=Resources(
                    cpus=shape["cpus"],
                    gpus=shape["gpus"],
                    memory_bytes=shape["memory_bytes"],
                    disk_bytes=shape["disk_bytes"],
                    time_seconds=shape["time_seconds"],
                    queue=shape["queue"],
                ),
                count=shape["count"],
                oldest=shape["oldest"],
            )
            for shape in document["meta"]["shapes"]
        ]

    def bundle(self, uuid: str) -> Bundle:
        """One bundle by its whole uuid. Raises NotFound."""
        return _bundles(
            {
                "data": [
                    self._json("GET", f"bundles/{quote(uuid)}", params=[("include", "owner")])[
                        "data"
                    ]
                ]
            }
        )[0]

    def bundles(self, uuids: Sequence[str]) -> list[Bundle]:
        """Bundles by their whole uuids, in that order. Raises NotFound if one is missing."""
        found: dict[str, Bundle] = {}
        for start in range(0, len(uuids), 100):
            document = self._json(
                "GET",
                "bundles",
                params=[("include", "owner")]
                + [("specs", uuid) for uuid in uuids[start : start + 100]],
            )
            found.update((bundle.uuid, bundle) for bundle in _bundles(document))
        for uuid in uuids:
            if uuid not in found:
                raise NotFound(f"there is no bundle {uuid}")
        return [found[uuid] for uuid in uuids]

    def create(
        self,
        bundles: Sequence[Mapping[str, Any]],
        *,
        wait_for_upload: bool = False,
    ) -> list[Bundle]:
        """Create bundles from their attributes (`bundle_type`, `command`, `dependencies`,
        `metadata`, and `uuid`, by which a repeated request creates nothing twice).

        On a CodaLab server they appear on the caller's home worksheet.
        """
        params = [("wait_for_upload", "1")] if wait_for_upload else []
        if self._worksheet is None:
            try:
                return self._create(bundles, params)
            except UsageError:
                if self.features:
                    raise
            # A CodaLab server: it has made nothing, since no worksheet was named.
            document = self._json("GET", "worksheets", params=[("specs", HOME_WORKSHEET)])
            self._worksheet = str(document["data"][0]["id"])
        params.append(("worksheet", self._worksheet))
        try:
            return self._create([completed(bundle) for bundle in bundles], params)
        except ServerFault as fault:
            # What it says of a uuid that there is already.
            uuids = [str(bundle["uuid"]) for bundle in bundles if "uuid" in bundle]
            if len(uuids) < len(bundles):
                raise
            try:
                return self.bundles(uuids)
            except BundlesError:
                raise fault from None

    def _create(
        self, bundles: Sequence[Mapping[str, Any]], params: Sequence[tuple[str, str]]
    ) -> list[Bundle]:
        document = self._json(
            "POST",
            "bundles",
            params=params,
            json={"data": [{"type": "bundles", "attributes": dict(b)} for b in bundles]},
            repeatable=all("uuid" in b for b in bundles),
        )
        return _bundles(document)

    def memoized(self, command: str, dependencies: Sequence[Dependency]) -> list[Bundle]:
        """The caller's runs of exactly this command over these bundles, oldest first, whatever
        became of them. A CodaLab server does not compare the paths in the bundles."""
        wanted = [
            {"child_path": dependency.child_path, "parent_uuid": dependency.parent_uuid}
            for dependency in dependencies
        ]
        return _bundles(
            self._json(
                "GET",
                "bundles",
                params=[
                    ("include", "owner"),
                    ("command", command),
                    ("dependencies", orjson.dumps(wanted).decode()),
                ],
            )
        )

    def delete(self, uuids: Sequence[str], *, force: bool = False) -> list[str]:
        """Delete bundles; those that others depend on only with ``force``. Returns the uuids."""
        document = self._json(
            "DELETE",
            "bundles",
            params=[("force", "1" if force else "0")],
            json={"data": [{"type": "bundles", "id": uuid} for uuid in uuids]},
        )
        if "data" not in document:
            return [str(uuid) for uuid in document["meta"]["ids"]]  # CodaLab's answer
        return [element["id"] for element in document["data"]]

    def act(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """`{"type": "kill" | "write", "uuid", …}`: tell bundles that have not ended something."""
        self._json(
            "POST",
            "bundle-actions",
            json={"data": [{"type": "bundle-actions", "attributes": dict(a)} for a in actions]},
        )

    def changes(
        self, after: int | None, *, wait_seconds: float = 0.0, states: Sequence[str] = ()
    ) -> Changes:
        """The transitions after a cursor, waiting for the first one (feature `changes`)."""
        params = [("wait_seconds", str(wait_seconds))] + [("state", state) for state in states]
        if after is not None:
            params.append(("after", str(after)))
        document = self._json(
            "GET", "changes", params=params, timeout_seconds=wait_seconds + POLL_MARGIN_SECONDS
        )
        return Changes(
            cursor=document["meta"]["cursor"],
            reset=bool(document["meta"].get("reset")),
            changes=tuple(map(Change.from_document, document["data"])),
        )

    def history(self, uuid: str) -> list[Change]:
        """The transitions of one bundle, the first 10,000 at most, oldest first (feature
        `changes`)."""
        document = self._json(
            "GET", "changes", params=[("after", "0"), ("uuid", uuid), ("limit", "10000")]
        )
        return [Change.from_document(d) for d in document["data"] if d["uuid"] == uuid]

    # Contents

    def contents_info(self, uuid: str, path: str = "", *, depth: int = 0) -> TargetInfo:
        """What lies at a path of a bundle. Raises NotFound."""
        document = self._json(
            "GET", f"bundles/{uuid}/contents/info/{quote(path)}", params=[("depth", str(depth))]
        )
        return TargetInfo.from_document(document["data"])

    @contextmanager
    def download(
        self,
        uuid: str,
        path: str = "",
        *,
        byte_range: tuple[int, int] | None = None,
        timeout_seconds: float = REPLY_TIMEOUT_SECONDS,
    ) -> Iterator[Download]:
        """The contents at a path: a file's bytes, or a directory as a tar.gz.

        ``byte_range`` (first, last), both included, of a file. Raises NotFound.
        """
        headers = {"Accept-Encoding": "gzip"}
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range[0]}-{byte_range[1]}"
        with self._contents(uuid, path, (), headers, timeout_seconds) as download:
            yield download

    @contextmanager
    def fetch(
        self,
        uuid: str,
        path: str = "",
        *,
        after: Mark | None = None,
        timeout_seconds: float = REPLY_TIMEOUT_SECONDS,
    ) -> Iterator[Download]:
        """The whole contents, as ``download`` has them, in a form that can be gone on with where
        the server can do that (feature `resume`).

        ``after``: only what comes after it; a server that cannot do that begins anew, which shows
        in ``start_bytes``. Raises NotFound.
        """
        # A file that is compressed on the way could neither be gone on with nor be checked.
        headers = {"Accept-Encoding": "identity" if "resume" in self.features else "gzip"}
        params = []
        if after is not None:
            headers |= {"Range": f"bytes={after.received_bytes}-", "If-Range": after.tag}
            params.append(("skip", str(after.received_bytes)))
        with self._contents(uuid, path, params, headers, timeout_seconds) as download:
            yield download

    @contextmanager
    def _contents(
        self,
        uuid: str,
        path: str,
        params: Sequence[tuple[str, str]],
        headers: dict[str, str],
        timeout_seconds: float,
    ) -> Iterator[Download]:
        with self._stream(
            "GET",
            f"bundles/{uuid}/contents/blob/{quote(path)}",
            params=[("support_redirect", "1"), *params],
            headers=headers,
            timeout_seconds=timeout_seconds,
            stream=True,
        ) as response:
            if response.status_code != 303:
                yield Download(response)
                return
            location = response.headers.get("Location", "")
            if not location.startswith(("http://", "https://")):
                raise ServerFault(f"{self.server} redirects the contents of {uuid} to nowhere")
            redirected = httpx.Request("GET", location, headers=headers)
        with self._open(redirected) as response:
            if response.status_code >= 300:
                response.read()
                raise error_for_status(response.status_code, _sentence(response))
            yield Download(response)

    def upload(
        self,
        uuid: str,
        content: bytes | Iterable[bytes],
        *,
        filename: str,
        claim: int | None = None,
        finalize: bool = False,
        unpack: bool = True,
        store: str = "",
        timeout_seconds: float = 300.0,
    ) -> None:
        """Replace a bundle's contents by a file, or by what a tar.gz holds.

        ``claim``: refused with Conflict when it is not the bundle's current one (feature
        `claims`). ``finalize``: the bundle becomes ready on success, failed otherwise.
        """
        params = [
            ("filename", filename),
            ("finalize_on_success", "1" if finalize else "0"),
            ("store", store),
        ]
        if not unpack:
            params.append(("unpack", "0"))
        if claim is not None:
            params.append(("claim", str(claim)))
        self.request(
            "PUT",
            f"bundles/{uuid}/contents/blob/",
            params=params,
            content=content,
            timeout_seconds=timeout_seconds,
        )

    # What a worker says

    def checkin(self, worker_id: str, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Tell the server everything about this worker; returns its messages, maybe none.

        Held by the server for up to the document's `wait_seconds` (CodaLab: 5). Raises Conflict
        when another session has taken the worker's id over.
        """
        wait_seconds = float(document.get("wait_seconds", 5.0))
        reply = self._json(
            "POST",
            f"workers/{quote(worker_id, safe='')}/checkin",
            json=document,
            timeout_seconds=wait_seconds + POLL_MARGIN_SECONDS,
        )
        messages = reply if isinstance(reply, list) else [reply]
        return [message for message in messages if message]

    def checkout(self, worker_id: str, session: str | None, reason: str) -> list[str]:
        """Say that this worker leaves (feature `checkout`); returns the uuids of what it had: they
        are staged again, or have ended, being lost too often or to be killed.

        ``session`` None: a worker of ours is gone for good, and cannot say so itself.
        """
        reply = self._json(
            "POST",
            f"workers/{quote(worker_id, safe='')}/checkout",
            json={"session": session, "reason": reason},
            timeout_seconds=POLL_MARGIN_SECONDS,
        )
        return [*(reply.get("restaged") or ()), *(reply.get("ended") or ())]

    def drain_worker(self, worker_id: str, why: str, *, drain: bool = True) -> None:
        """Have a worker of ours finish what it has, take nothing more, and leave; ``drain`` False:
        it may take bundles again (feature `drain`). Raises NotFound when it is not there."""
        self.request(
            "POST",
            f"workers/{quote(worker_id, safe='')}/drain",
            json={"is_draining": drain, "reason": why},
        )

    def start_bundle(self, worker_id: str, uuid: str, hostname: str, start_time: int) -> bool:
        """Ask a server without claims whether the bundle is still this worker's to start."""
        return bool(
            self._json(
                "POST",
                f"workers/{quote(worker_id, safe='')}/start_bundle/{uuid}",
                json={"hostname": hostname, "start_time": start_time},
            )
        )

    def reply(self, worker_id: str, socket_id: int, document: Mapping[str, Any]) -> None:
        """Answer a `read` or `netcat` message with a document."""
        self.request(
            "POST", f"workers/{quote(worker_id, safe='')}/reply/{socket_id}", json=dict(document)
        )

    def reply_data(
        self,
        worker_id: str,
        socket_id: int,
        header: Mapping[str, Any],
        content: bytes | Iterable[bytes],
    ) -> None:
        """Answer a `read` or `netcat` message with bytes."""
        self.request(
            "POST",
            f"workers/{quote(worker_id, safe='')}/reply_data/{socket_id}",
            params=[("header_message", orjson.dumps(dict(header)).decode())],
            content=content,
        )

    def workers(self) -> list[dict[str, Any]]:
        """The workers that the caller may see, as `GET /rest/workers/info` describes them."""
        return list(self._json("GET", "workers/info")["data"])


def _bundles(document: Mapping[str, Any]) -> list[Bundle]:
    users = {
        str(user["id"]): str((user.get("attributes") or {}).get("user_name") or "")
        for user in document.get("included") or ()
        if user.get("type") == "users"
    }
    return [Bundle.from_document(element, users) for element in document["data"]]


def _sentence(response: httpx.Response) -> str:
    text = response.text.strip()
    if not text or text.startswith("<"):
        return f"the server answered {response.status_code} {response.reason_phrase}"
    return text.splitlines()[0][:1000]


def _clock_skew(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _is_loopback(server: str) -> bool:
    host = httpx.URL(server).host
    return host in ("localhost", "::1") or host.startswith("127.")
