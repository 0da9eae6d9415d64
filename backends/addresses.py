"""Addresses of services that an option names: which may be spoken to without encryption."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from backends.base import Invalid


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine alone."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(option: str, url: str) -> None:
    """Raises Invalid, which names the option, and of the URL nothing that may be a signature."""
    bare = url.partition("?")[0]
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise Invalid(f"{option} {bare!r} is no URL: it starts with https://")
    if url.startswith("http://") and not is_loopback(url):
        raise Invalid(f"{option} {bare!r} would show credentials to the network: use https")
