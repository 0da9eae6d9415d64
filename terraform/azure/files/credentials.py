"""The manager's credentials, from Key Vault, as the machine's identity."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from azure.identity import ManagedIdentityCredential

SCOPE = "https://vault.azure.net/.default"


def credentials() -> dict[str, Any]:
    """By environment variable. AZURE_CLIENT_ID: whose they are; CREDENTIALS_SECRET: its address."""
    identity = ManagedIdentityCredential(client_id=os.environ["AZURE_CLIENT_ID"])
    request = urllib.request.Request(
        f"{os.environ['CREDENTIALS_SECRET']}?api-version=7.4",
        headers={"Authorization": f"Bearer {identity.get_token(SCOPE).token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(json.load(answer)["value"])
    return found
