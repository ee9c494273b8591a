"""Chats as text and token ids: templates, tokenizing, streaming text, stop texts. Knows no engines.

Imports only the standard library, `tokenizers` and `jinja2`: it runs inside Triton's Python stub.
"""

from hermes_deploy.chat.detokenizer import Detokenizer
from hermes_deploy.chat.messages import Room, check_messages, parse_messages
from hermes_deploy.chat.raw_prompt import parse_prompt
from hermes_deploy.chat.stop_text import StopText
from hermes_deploy.chat.tokenizer import ChatTokenizer, read_folder, write_folder

__all__ = [
    "ChatTokenizer",
    "Detokenizer",
    "Room",
    "StopText",
    "check_messages",
    "parse_messages",
    "parse_prompt",
    "read_folder",
    "write_folder",
]
