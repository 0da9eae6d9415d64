"""Whose a task is: its display name says so, because tasks have no metadata.

A display name is given when a task is made and can never be changed. Several managers share one
Azure Batch job: jobs are scarce (100 to 300 active ones an account by default), tasks are not.
"""

from __future__ import annotations

from backends.base import Context, LaunchKey


def mark_of(context: Context, key: LaunchKey) -> str:
    """The display name of a task of ours."""
    return f"worker-manager {context.owner} {context.pool} {key}"


def key_of(context: Context, task_id: str | None, display_name: str | None) -> LaunchKey | None:
    """The key of a task, None when it is not of our owner and pool: to the letter.

    Azure takes ids that differ in case only for the same, so an id alone says nothing.
    """
    key = LaunchKey.parse(task_id or "")
    if key is None or key.pool != context.pool or display_name != mark_of(context, key):
        return None
    return key
