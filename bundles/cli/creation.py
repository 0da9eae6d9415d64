"""Creating a bundle at the server, once, even when its reply is lost. Not for contents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bundles.errors import ServerFault, Unreachable

if TYPE_CHECKING:
    from bundles.client import Client
    from bundles.model import Bundle


def create(client: Client, attributes: Mapping[str, Any]) -> Bundle:
    """Create the bundle of these attributes, `uuid` among them; asks twice before it gives up.

    Raises whatever the second request ended with.
    """
    try:
        return client.create([attributes])[0]
    except (Unreachable, ServerFault):
        # The uuid makes the second request harmless if the first one was heard after all.
        return client.create([attributes])[0]
