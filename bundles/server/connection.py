"""One connection of a client: what uvicorn does, and what CodaLab's uploads do besides.

They send a zero byte for every minute that the reply takes (`worker/upload_util.py`), which is no
part of any request.
"""

from __future__ import annotations

from email.utils import formatdate

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Passes over zero bytes where a request may begin."""

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"\0") and self.cycle is not None and not self.cycle.more_body:
            data = data.lstrip(b"\0")
            if not data:
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Answers say what time it is here. uvicorn's own way needs its clock, which ticks ten
        times a second; this is asked when somebody asks."""
        self.server_state.default_headers = [
            (b"date", formatdate(usegmt=True).encode()),
            *self.config.encoded_headers,
        ]
        super().on_headers_complete()
