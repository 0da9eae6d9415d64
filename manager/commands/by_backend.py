"""A command with a command of its own for each backend: `doctor slurm`, `init slurm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from backends import registry
from manager.arguments import in_order
from manager.options import pool_options


class ByBackend(click.Group):
    """``command_of`` makes a backend's command, whose options may stand before its name, too."""

    also = ""
    """What else may stand for a backend's name."""

    def __init__(
        self, name: str, command_of: Callable[[registry.Entry], click.Command], **attributes: Any
    ) -> None:
        super().__init__(name, subcommand_metavar="BACKEND [OPTIONS]", **attributes)
        self._command_of = command_of

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {
            name for option in pool_options() if not option.is_flag for name in option.opts
        }
        return super().parse_args(ctx, in_order(args, registry.names(), with_value))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in registry.names():
            return None
        return self._command_of(registry.find(cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            known = ", ".join(registry.entries())
            raise click.UsageError(f"there is no backend {args[0]!r}: name {known}{self.also}")
        return super().resolve_command(ctx, args)
