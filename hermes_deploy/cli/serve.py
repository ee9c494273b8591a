"""`hermes-deploy serve`: a verified artifact on a real Triton, until stopped."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hermes_deploy.serving import Service

_LOG = logging.getLogger(__name__)


def serve(
    artifact: Annotated[Path | None, typer.Argument(help="Folder that build wrote.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with settings. HERMES_… variables and flags win.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting and where it comes from, and stop.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Any setting that --show-config lists. Repeatable."),
    ] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 = a free one. Default: 8001.")] = None,
    http_port: Annotated[int | None, typer.Option(help="HTTP port; 0 = a free one. Default: 8000.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port; 0 = a free one. Default: 8002.")] = None,
    health_port: Annotated[int | None, typer.Option(help="HTTP health port; 0 = a free one. Default: 8003.")] = None,
    health_grpc_port: Annotated[
        int | None, typer.Option(help="gRPC health port; 0 = a free one. Default: 8004.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for every interface. Default: 127.0.0.1.")
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(help="Lower the context, in tokens. Never above what was built."),
    ] = None,
    max_slots: Annotated[
        int | None,
        typer.Option(help="Lower the number of chats at once. Never above what was built."),
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Requests that may wait for a slot. Default: 64.")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds that running answers have after SIGTERM. Default: 30.")
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

    Watches the server and starts it again when it fails. Ctrl-C or SIGTERM lets running answers
    finish and then stops it; a second one ends them. Uses the container's tritonserver when there
    is one, else the one in the nvidia-pytriton package.

    Example: hermes-deploy serve demo --grpc-port 8001
    """
    from hermes_deploy import serving
    from hermes_deploy.errors import UsageError
    from hermes_deploy.serving import own_log, settings_sources

    named = {
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "health_port": health_port,
        "health_grpc_port": health_grpc_port,
        "host": host,
        "max_context": max_context,
        "max_slots": max_slots,
        "queue_limit": queue_limit,
        "drain_timeout": drain_timeout,
        "require_signature": require_signature,
        "log": log,
    }
    flags: dict[str, Any] = settings_sources.from_pairs(setting or [])
    flags |= {name: value for name, value in named.items() if value is not None}
    resolved = settings_sources.resolve(config, os.environ, flags)
    if show_config:
        shown = settings_sources.shown_as_json(resolved) if as_json else settings_sources.shown(resolved)
        print(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
        return
    if artifact is None:
        raise UsageError("which artifact is to be served is missing: hermes-deploy serve FOLDER, as build wrote it")
    settings = resolved.settings
    own_log.configure(settings.log_format, settings.log_level)

    def ready(service: Service) -> None:
        if as_json:
            health = {"health": service.health, "health_grpc": service.health_grpc}
            print(json.dumps({"ready": True, **dataclasses.asdict(service.endpoints), **health}), flush=True)
            return
        at = service.endpoints
        print(
            f"ready: a token was generated. Ctrl-C stops the server.\n"
            f"  gRPC     {at.grpc}\n  HTTP     {at.http}\n  metrics  {at.metrics}\n"
            f"  health   {service.health}/healthz, gRPC {service.health_grpc}\n"
            f"Ask:  hermes-deploy ask 'Hello!' --url {at.grpc}",
            flush=True,
        )

    key = settings.require_signature
    signed = f" and that {key} signed it," if key is not None else ""
    _LOG.info("verifying %s%s and starting Triton ...", artifact, signed)
    serving.serve(serving.Server(artifact, settings), ready)
