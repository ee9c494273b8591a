"""Serves an artifact on a real Triton, and holds what the Triton models run.

`Server` and `serve` are loaded when asked for: Triton's stubs import the models of this package
and must start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermes_deploy.serving.server import Endpoints, Server
    from hermes_deploy.serving.supervisor import Service, serve

__all__ = ["Endpoints", "Server", "Service", "serve"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hermes_deploy.serving import server, supervisor

        return getattr(supervisor if name in ("Service", "serve") else server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
