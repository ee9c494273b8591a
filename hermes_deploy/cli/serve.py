"""`hermes-deploy serve`: a verified artifact on a real Triton, until stopped."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hermes_deploy.serving import Endpoints


def serve(
    artifact: Annotated[Path, typer.Argument(help="Folder that build wrote.")],
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 = a free one.", min=0, max=65535)] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 = a free one.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 = a free one.", min=0, max=65535)] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    max_context: Annotated[
        int | None,
        typer.Option(help="Lower the context, in tokens. Never above what was built."),
    ] = None,
    max_slots: Annotated[
        int | None,
        typer.Option(help="Lower the number of chats at once. Never above what was built."),
    ] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Serve only what the owner of this public key (PEM) has signed."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="File for the server's own log. Default: shown only when the server fails."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON line with the endpoints.")
    ] = False,
) -> None:
    """Verifies the artifact, starts Triton, and says so when a token was really generated.

    Stops cleanly on Ctrl-C or SIGTERM. Uses the container's tritonserver when there is one,
    else the one in the nvidia-pytriton package.

    Example: hermes-deploy serve demo --grpc-port 8001
    """
    from hermes_deploy import serving

    def ready(endpoints: Endpoints) -> None:
        if as_json:
            print(json.dumps({"ready": True, **dataclasses.asdict(endpoints)}), flush=True)
            return
        print(
            f"ready: a token was generated. Ctrl-C stops the server.\n"
            f"  gRPC     {endpoints.grpc}\n  HTTP     {endpoints.http}\n  metrics  {endpoints.metrics}\n"
            f"Ask:  hermes-deploy ask 'Hello!' --url {endpoints.grpc}",
            flush=True,
        )

    signed = f" and that {require_signature} signed it," if require_signature is not None else ""
    print(f"verifying {artifact}{signed} and starting Triton ...", file=sys.stderr)
    server = serving.Server(
        artifact,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        host=host,
        max_context=max_context,
        max_slots=max_slots,
        require_signature=require_signature,
        log=log,
    )
    serving.serve(server, ready)
