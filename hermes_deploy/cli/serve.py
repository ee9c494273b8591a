"""`hermes-deploy serve`: a verified artifact on a real Triton, until stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    artifact: Annotated[Path, typer.Argument(help="Folder that build wrote.")],
    grpc_port: Annotated[int, typer.Option(help="gRPC port.", min=1, max=65535)] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port.", min=1, max=65535)] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics port.", min=1, max=65535)] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    max_context: Annotated[
        int | None,
        typer.Option(help="Lower the context, in tokens. Never above what was built."),
    ] = None,
    max_slots: Annotated[
        int | None,
        typer.Option(help="Lower the number of chats at once. Never above what was built."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON line with the endpoints.")
    ] = False,
) -> None:
    """Verifies the artifact, starts Triton, and says so when a token was really generated.

    Stops cleanly on Ctrl-C or SIGTERM. Uses the container's tritonserver when there is one,
    else the one in the nvidia-pytriton package.
    """
    raise SystemExit("filled in once serving lands")
