"""Launches, lists and ends worker jobs on one compute service each.

Imports nothing else of this project: what a job runs is the caller's command line.
"""

from __future__ import annotations
