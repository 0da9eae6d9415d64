"""How a manager on a machine of terraform/azure or terraform/gcp gets its credentials."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

TERRAFORM = Path(__file__).parents[2] / "terraform"
SECRET = {"WORKER_MANAGER_TOKEN": "t"}


def program(cloud: str) -> Any:
    path = TERRAFORM / cloud / "files" / "credentials.py"
    specification = importlib.util.spec_from_file_location(f"credentials_{cloud}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Azure(BaseHTTPRequestHandler):
    """What a machine's identity and a vault answer, if one asks them as they want to be asked."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/identity":
            query = parse_qs(asked.query)
            assert (query["client_id"], query["resource"]) == (
                ["ours"],
                ["https://vault.azure.net"],
            )
            answer = {
                "access_token": "as-ours",
                "expires_on": "4102444800",
                "token_type": "Bearer",
            }
        elif (
            self.path == "/secrets/credentials?api-version=7.4"
            and self.headers["Authorization"] == "Bearer as-ours"
        ):
            answer = {"value": json.dumps(SECRET)}
        else:
            self.send_error(403)
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def azure() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Azure)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_on_azure_the_credentials_come_from_the_vault_by_the_machine_s_identity(
    azure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{azure}/identity")
    monkeypatch.setenv("IDENTITY_HEADER", "x")
    monkeypatch.setenv("AZURE_CLIENT_ID", "ours")
    monkeypatch.setenv("CREDENTIALS_SECRET", f"{azure}/secrets/credentials")
    assert program("azure").credentials() == SECRET


def test_on_google_cloud_the_latest_version_of_the_secret_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client:
        def access_secret_version(self, *, name: str, timeout: float) -> Any:
            assert name == "projects/p/secrets/s/versions/latest"
            return SimpleNamespace(payload=SimpleNamespace(data=json.dumps(SECRET).encode()))

    module = program("gcp")
    monkeypatch.setattr(module, "SecretManagerServiceClient", Client)
    monkeypatch.setenv("CREDENTIALS_SECRET", "projects/p/secrets/s")
    assert module.credentials() == SECRET
