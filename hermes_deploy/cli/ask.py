"""`hermes-deploy ask`: one question to a served model, its answer streamed to the terminal."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

DOORS = ("chat", "ensemble")


def ask(
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    url: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC port.")] = "localhost:8001",
    door: Annotated[
        str,
        typer.Option(
            help="chat: straight to the engine. ensemble: through Triton's pipeline.", metavar="|".join(DOORS)
        ),
    ] = "chat",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="In (0, 1]; 1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole answer.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document when the answer is complete.")
    ] = False,
) -> None:
    """Asks a served model and streams the answer. Ctrl-C cancels it on the server.

    Example: hermes-deploy ask 'What is the capital of France?' --max-tokens 50 --temperature 0
    """
    from hermes_deploy.client import Client
    from hermes_deploy.errors import UsageError

    if sys.stdout is None:
        raise UsageError("standard output is closed; the answer needs somewhere to go")
    question = _standard_input() if prompt == "-" else prompt
    # the answer is UTF-8 whatever the locale says, and characters are never split: pieces are whole texts
    write, flush = sys.stdout.buffer.write, sys.stdout.flush
    with (
        Client(url) as client,
        client.stream(
            question,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or (),
            door=door,  # type: ignore[arg-type]  # checked by the client
            timeout=timeout,
        ) as stream,
    ):
        if not as_json:
            started = False
            try:
                for piece in stream:
                    write(piece.text.encode())
                    flush()
                    started = started or bool(piece.text)
            finally:
                # an error message, or the shell's prompt, starts on a line of its own
                if started:
                    write(b"\n")
                    flush()
            return
        answer = stream.result()
    speed = answer.tokens_per_second
    document = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
        "time_to_first_token_ms": round(answer.timing.first_piece_s * 1e3, 1),
        "tokens_per_second": None if speed is None else round(speed, 1),
        "request_id": answer.request_id,
        "door": door,
    }
    write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    flush()


def _standard_input() -> str:
    from hermes_deploy.errors import UsageError

    if sys.stdin is None:
        raise UsageError("standard input is closed; give the question there, or as the argument")
    data = sys.stdin.buffer.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}. "
            "Convert it first, e.g. iconv -f LATIN1 -t UTF-8"
        ) from None
    if not text.strip():
        raise UsageError("standard input is empty; give the question there, or as the argument")
    return text
