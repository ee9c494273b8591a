"""`hermes-deploy ask`: one question to a served model, its answer streamed to the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hermes_deploy.client import Answer, Choice, Stream

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
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="The text is the whole prompt, sent without the chat template; control tokens in it count."
        ),
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Nothing ends the answer before that many.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="In (0, 1]; 1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Share of the likeliest token's probability; 0 is off.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Over prompt and answer; 1 is off.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Over the answer, -2 to 2; 0 is off.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Over the answer, -2 to 2; 0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="The model itself does not end the answer.")] = False,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Answers, each printed when it is complete.")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: alternatives with each token and its log probability.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole answer.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document when the answer is complete.")
    ] = False,
) -> None:
    """Asks a served model and streams the answer. Ctrl-C cancels it on the server.

    Example: hermes-deploy ask 'What is the capital of France?' --max-tokens 50 --temperature 0
    """
    from hermes_deploy.client import Client, RawPrompt
    from hermes_deploy.errors import UsageError

    if sys.stdout is None:
        raise UsageError("standard output is closed; the answer needs somewhere to go")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs is printed with --json only; add --json")
    if raw and system is not None:
        raise UsageError("--system was given with --raw, whose text is the whole prompt; write it into that")
    question = _standard_input() if prompt == "-" else prompt
    # the answer is UTF-8 whatever the locale says, and characters are never split: pieces are whole texts
    write, flush = sys.stdout.buffer.write, sys.stdout.flush
    with (
        Client(url) as client,
        client.stream(
            RawPrompt(question) if raw else question,
            system=system,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or (),
            ignore_eos=ignore_eos or None,
            n=n,
            logprobs=logprobs,
            door=door,  # type: ignore[arg-type]  # checked by the client
            timeout=timeout,
        ) as stream,
    ):
        if as_json:
            write(json.dumps(_document(stream.result(), door), ensure_ascii=False).encode() + b"\n")
            flush()
            return
        started = False
        try:
            for text in _texts(stream, several=n is not None and n > 1):
                write(text.encode())
                flush()
                started = started or bool(text)
        finally:
            # an error message, or the shell's prompt, starts on a line of its own
            if started:
                write(b"\n")
                flush()


def _texts(stream: Stream, *, several: bool) -> Iterator[str]:
    """What is printed: one answer while it comes, several one after the other, each whole under its number."""
    if not several:
        for piece in stream:
            yield piece.text
        return
    whole: dict[int, str] = {}
    separator = ""
    for piece in stream:
        whole[piece.index] = whole.get(piece.index, "") + piece.text
        if piece.finish_reason:
            yield f"{separator}[{piece.index}] {whole[piece.index]}"
            separator = "\n\n"


def _document(answer: Answer, door: str) -> dict[str, Any]:
    """`text` and `finish_reason` are the first answer's; `choices` has all, with logprobs where they were asked for."""
    speed = answer.tokens_per_second
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "choices": [_choice(choice) for choice in answer.choices],
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "cached_tokens": answer.usage.cached_tokens,
        },
        "time_to_first_token_ms": round(answer.timing.first_piece_s * 1e3, 1),
        "tokens_per_second": None if speed is None else round(speed, 1),
        "request_id": answer.request_id,
        "door": door,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    told: dict[str, Any] = {"index": choice.index, "text": choice.text, "finish_reason": choice.finish_reason}
    if choice.logprobs:
        told["logprobs"] = [
            {
                "token_id": token.token_id,
                "logprob": token.logprob,
                "top": [{"token_id": other, "logprob": logprob} for other, logprob in token.top],
            }
            for token in choice.logprobs
        ]
    return told


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
