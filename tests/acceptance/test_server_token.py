"""The administrator's token when it is given to the server at its start; and `/healthz`, which
needs none."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import httpx
import pytest
from managing import eventually
from serving import Server, serving

from bundles.client import Client
from bundles.errors import NotAuthenticated
from bundles.home import Credentials

GIVEN = "one-secret-for-server-and-manager"


def name_of(server: Server, token: str) -> str:
    with Client(server.url, Credentials(token=token)) as client:
        return str(client.whoami()["user_name"])


def own_token(server: Server) -> str:
    return server.home.token_path.read_text().strip()


@pytest.mark.parametrize("is_credential", [False, True])
def test_a_given_token_is_the_admins_until_a_start_without_it(
    is_credential: bool, tmp_path: Path
) -> None:
    server = Server(tmp_path)
    plain = dict(server.env)
    if is_credential:
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        (credentials / "token").write_text(GIVEN + "\n")
        server.env |= {"CREDENTIALS_DIRECTORY": str(credentials)}
    else:
        server.env |= {"WORKER_MANAGER_TOKEN": GIVEN}
    with serving(server):
        assert name_of(server, GIVEN) == name_of(server, own_token(server)) == "admin"
        assert stat.S_IMODE(server.home.token_path.stat().st_mode) == 0o600
        first = own_token(server)
        assert first != GIVEN
        server.stop()
        server.start()
        assert name_of(server, GIVEN) == name_of(server, first) == "admin"
        server.stop()
        server.env = plain
        server.start()
        assert name_of(server, first) == "admin"
        with pytest.raises(NotAuthenticated):
            name_of(server, GIVEN)
    for file in (server.log, *server.home.path.rglob("*")):
        assert file.is_dir() or GIVEN.encode() not in file.read_bytes(), file


def test_the_token_file_may_be_given_and_go(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with serving(server):
        given = own_token(server)
        server.stop()
        server.env |= {"WORKER_MANAGER_TOKEN": given}
        server.start()
        assert own_token(server) == given
        server.stop()
        # What was in the file opens nothing any more, but as the token that is given.
        server.home.token_path.unlink()
        server.start()
        assert own_token(server) != given
        assert name_of(server, given) == name_of(server, own_token(server)) == "admin"


def test_a_token_that_would_weaken_the_server_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with serving(server):
        with server.client() as client:
            workers = client.worker_token()
        server.stop()
        before = own_token(server)
        for given in ("x" * 19, " " + "x" * 19 + "\n", "x" * 20 + " y", "ü" * 30, workers):
            said = server.command("serve", "--port", "0", env={"WORKER_MANAGER_TOKEN": given})
            assert said.returncode == 2
            assert said.stderr.startswith("bundles: the token given to this server")
            assert said.stderr.count("\n") == 1
            assert given.strip() not in said.stderr
        assert own_token(server) == before
        server.start()
        assert name_of(server, before) == "admin"


def test_healthz_says_ok_or_what_is_wrong(server: Server) -> None:
    healthz = f"{server.url}/healthz"

    def is_well() -> bool:
        reply = httpx.get(healthz, trust_env=False, timeout=60)
        return (reply.status_code, reply.text) == (200, "ok")

    eventually(is_well, "good health")
    assert httpx.post(healthz, trust_env=False, timeout=60).status_code == 405
    contents = server.home.path / "contents"
    contents.rename(contents.with_name("away"))

    def trouble() -> str:
        reply = httpx.get(healthz, trust_env=False, timeout=60)
        return reply.text if reply.status_code == 503 else ""

    said = eventually(trouble, "bad health")
    assert "No such file or directory" in said
    assert "\n" not in said
    shutil.move(contents.with_name("away"), contents)
    eventually(is_well, "good health")
