"""The manager's credentials, from Secret Manager, as the machine's service account."""

from __future__ import annotations

import json
import os
from typing import Any

from google.cloud.secretmanager import SecretManagerServiceClient


def credentials() -> dict[str, Any]:
    """By environment variable. CREDENTIALS_SECRET: projects/PROJECT/secrets/NAME."""
    name = f"{os.environ['CREDENTIALS_SECRET']}/versions/latest"
    answer = SecretManagerServiceClient().access_secret_version(name=name, timeout=60)
    found: dict[str, Any] = json.loads(answer.payload.data)
    return found
