"""Where workers' credentials are kept for them: the Parameter Store, as SecureStrings of one pool.

AWS hands them to a container by itself (`valueFrom` in its job definition), so that no definition,
command line or tag holds one. Each new value takes the place of the last: a worker that starts
late gets the newest. Parameter Store keeps 100 versions by itself, so that a fresh token can come
with every launch; Secrets Manager would run full.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.aws_batch.connection import Connection
from backends.base import Context


class Parameters:
    """The parameters of one owner and pool."""

    def __init__(self, context: Context, connection: Connection) -> None:
        self._prefix = f"/worker-manager/{context.owner}/{context.pool}"
        self._connection = connection
        self._written: dict[str, str] = {}

    def name(self, variable: str) -> str:
        return f"{self._prefix}/{variable}"

    def places(self, root: str, secrets: Mapping[str, str]) -> dict[str, str]:
        """The ARN of each variable's value. ``root``: `arn:…:parameter`."""
        return {variable: f"{root}{self.name(variable)}" for variable in secrets}

    def write(self, secrets: Mapping[str, str]) -> None:
        """Keep what is not kept yet. Raises BackendError."""
        for variable, value in secrets.items():
            if self._written.get(variable) == value:
                continue
            name = self.name(variable)
            self._connection.ask(
                "ssm",
                "put_parameter",
                f"keeping the workers' credentials in the parameter {name}",
                Name=name,
                Value=value,
                Type="SecureString",
                Overwrite=True,
            )
            self._written[variable] = value
