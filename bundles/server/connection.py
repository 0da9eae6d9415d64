"""One connection of a client: what uvicorn does, and what CodaLab's uploads do besides.

They send a zero byte for every minute that the reply takes (`worker/upload_util.py`), which is no
part of any request.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Passes over zero bytes where a request may begin."""

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"\0") and self.cycle is not None and not self.cycle.more_body:
            data = data.lstrip(b"\0")
            if not data:
                return
        super().data_received(data)
