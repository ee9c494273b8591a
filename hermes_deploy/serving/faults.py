"""What a caller is told of a failure, and what the log is told of one that is our own fault."""

from __future__ import annotations

import sys
import traceback

from hermes_deploy.errors import RequestError


def told_to_caller(error: Exception) -> RequestError:
    """What the caller gets for `error`; a fault of our own is reported in the log as well.

    `error` forgets its frames: one of them holds it, and the request with Triton's shared memory, in a cycle that
    would stay until Python looks for cycles.
    """
    if not isinstance(error, RequestError):
        report(error)
    error.__traceback__ = None
    if isinstance(error, RequestError):
        return error
    return RequestError(f"{type(error).__name__}: {error}. This is a fault of the server; see its log.", "INTERNAL")


def report(error: Exception) -> None:
    """Where it happened, on stderr. Not its words, which may quote what was asked: they go to the caller."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    told = f"{type(error).__name__}: (its words were told to the caller only, for they may quote the request)"
    print(f"Traceback (most recent call last):\n{frames}{told}", file=sys.stderr, flush=True)
