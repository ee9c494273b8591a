"""Everything about serving that can be set: one typed record, its defaults, and what each setting means.

Where values come from, and which wins, is in settings_sources.py. Times are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from hermes_deploy.errors import UsageError
from hermes_deploy.runtime.pace import STRETCH

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]

SECRETS = frozenset({"admin_secret"})
PORTS = ("grpc_port", "http_port", "metrics_port", "health_port", "health_grpc_port")


class Settings(BaseModel):
    """Unknown keys are errors. Ports: 0 = a free one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface"
    )
    grpc_port: Port = Field(default=8001, description="Triton's gRPC")
    http_port: Port = Field(default=8000, description="Triton's HTTP")
    metrics_port: Port = Field(default=8002, description="Triton's metrics, for Prometheus")
    health_port: Port = Field(default=8003, description="health over HTTP: /livez, /readyz, /healthz")
    health_grpc_port: Port = Field(default=8004, description="health over gRPC: grpc.health.v1")

    max_context: int | None = Field(
        default=None, ge=1, description="tokens of a chat, at most what was built; null = that"
    )
    max_slots: int | None = Field(default=None, ge=1, description="chats at once, at most what was built; null = that")
    queue_limit: int = Field(
        default=64, ge=0, le=512, description="requests that may wait for a slot; one more is refused"
    )
    max_request_bytes: int | None = Field(
        default=None,
        ge=1024,
        le=256 << 20,
        description="body of an HTTP request; null = 64 KiB + 128 bytes a token of context, 16 MiB at most",
    )
    stretch: float = Field(
        default=STRETCH,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="a prompt's chunk may take that many times a decode step, where the engine's calls take turns",
    )

    speculation: bool = Field(
        default=True,
        description="guess what repeats prompt or answer and check it in one step, where a chat runs alone",
    )
    piece_interval: float = Field(
        default=0.05,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="seconds between two pieces of an answer, but the first and the last; 0: a piece for each token",
    )
    own_kernels: bool = Field(
        default=True, description="on a CPU with AVX-512 VNNI; false: ONNX Runtime's operators, about half as fast"
    )

    ready_timeout: Seconds = Field(default=300.0, description="until a token must have been generated after a start")
    engine_timeout: Seconds = Field(default=120.0, description="a call of the engine that takes longer hangs: restart")
    stall_after: Seconds = Field(
        default=4.0,
        description="a call that takes longer, and 3 times as long as any before it, is reported as a stall",
    )
    silence_timeout: Seconds = Field(
        default=15.0, description="no answer of the engine's process or of Triton: restart"
    )
    drain_timeout: Seconds = Field(default=30.0, description="that running answers have to finish in after SIGTERM")

    restarts: int = Field(
        default=5, ge=0, le=1000, description="within restart_window; one more failure and serve gives up"
    )
    restart_window: Seconds = Field(default=600.0, description="in which failures are counted together")
    restart_backoff: Seconds = Field(default=1.0, description="pause before the first restart; doubles up to 30 s")

    require_signature: Path | None = Field(default=None, description="public key (PEM) whose owner must have signed")
    admin_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="value of the header hermes-admin that opens Triton's admin endpoints; null = they stay shut",
    )
    log: Path | None = Field(default=None, description="file for Triton's own log; null = shown only when it fails")
    log_bytes: int = Field(
        default=64 << 20,
        ge=1 << 16,
        le=1 << 40,
        description="that log and the older one beside it, log.1, take together at most",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="of serve's own messages")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="of serve's own messages"
    )

    log_content: bool = Field(
        default=False, description="serve's own log holds what is asked and answered; for debugging, not for production"
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Settings:
        seen: dict[int, str] = {}
        for name in PORTS:
            port = getattr(self, name)
            if port and port in seen:
                raise ValueError(f"{seen[port]} and {name} are both {port}; give each its own")
            seen[port] = name
        return self


def settings_of(fields: dict[str, Any]) -> Settings:
    """For callers in Python. Raises UsageError with everything that is wrong."""
    try:
        return Settings(**fields)
    except ValidationError as error:
        raise UsageError("; ".join(describe(error))) from None


def describe(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong: which setting, what was found, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name} is no setting; settings are: {', '.join(Settings.model_fields)}")
            continue
        said = problem["msg"].removeprefix("Value error, ")
        # a secret that is too short is still not to be shown
        found = "" if name in SECRETS or not name else f" is {problem['input']!r}"
        lines.append(f"{name}{found}: {said[0].lower()}{said[1:]}" if name else said)
    return lines
