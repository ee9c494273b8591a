"""The text of a whole rendered prompt on the wire -> text. Bounded as messages are; trusted as they are not.

Control tokens in it are control tokens: who sends it vouches for every word of it. Nothing is rendered.
"""

from __future__ import annotations

from hermes_deploy.chat.messages import MAX_BYTES, MAX_CHARACTERS, Room, does_not_fit
from hermes_deploy.errors import RequestError


def parse_prompt(data: bytes, room: Room | None = None) -> str:
    """`data`: UTF-8. Raises RequestError; OUT_OF_RANGE for what `room` cannot hold."""
    if len(data) > MAX_BYTES:
        raise RequestError(f"prompt has {len(data)} bytes; at most {MAX_BYTES} are taken")
    if room is not None and len(data) > room.text_bytes:
        raise does_not_fit(f"prompt has {len(data)} bytes", f"{room.text_bytes} bytes of text", room)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"prompt is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    if not text:
        raise RequestError("prompt is empty; expected the whole rendered prompt, such as <|im_start|>user …")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"prompt has {len(text)} characters; at most {MAX_CHARACTERS} are taken")
    return text
