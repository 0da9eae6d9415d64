from __future__ import annotations

from pathlib import Path

import pytest

from bundles.errors import NotAuthenticated, UsageError
from bundles.home import Credentials, Home, find_credentials, given_token

SERVER = "https://bundles.example.org"


def find(directory: Path, **environ: str) -> Credentials:
    home = Home(directory / "home")
    return find_credentials(SERVER, home, {"CREDENTIALS_DIRECTORY": str(directory), **environ})


def test_a_unit_of_systemd_finds_the_password_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("me\nsecret\n")
    (tmp_path / "password").chmod(0o440)  # as an access list for the unit's user shows
    assert find(tmp_path) == Credentials(username="me", password="secret")


def test_a_unit_of_systemd_finds_the_token_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    assert find(tmp_path) == Credentials(token="t")


def test_the_environment_comes_before_what_systemd_gives(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    assert find(tmp_path, WORKER_MANAGER_TOKEN="other") == Credentials(token="other")


def test_a_token_of_the_environment_may_end_as_the_file_did_that_it_was_read_from(
    tmp_path: Path,
) -> None:
    assert find(tmp_path, WORKER_MANAGER_TOKEN="t\n") == Credentials(token="t")
    assert given_token({"WORKER_MANAGER_TOKEN": "t\r\n"}) == "t"
    for damaged in ("t\nt", "tök"):
        with pytest.raises(UsageError, match="WORKER_MANAGER_TOKEN"):
            find(tmp_path, WORKER_MANAGER_TOKEN=damaged)


def test_credentials_of_systemd_that_are_for_others_are_none(tmp_path: Path) -> None:
    (tmp_path / "certificate").write_text("c\n")
    with pytest.raises(NotAuthenticated):
        find(tmp_path)


def test_a_password_of_systemd_without_a_user_is_said(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    with pytest.raises(UsageError, match="must hold two lines"):
        find(tmp_path)
