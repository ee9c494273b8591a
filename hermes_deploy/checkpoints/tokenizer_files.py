"""What serving keeps of a checkpoint's tokenizer. Standard library only: `chat/` reads it inside Triton's stub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything that serving needs to turn chats into ids and back, as file contents.

    `tokenizer_json`: a Hugging Face `tokenizers` file. `chat_template`: Jinja source.
    `bos_token` / `eos_token`: texts as the template sees them; None where there is none.
    """

    tokenizer_json: bytes
    chat_template: str
    bos_token: str | None
    eos_token: str | None
    stop_ids: tuple[int, ...]
