"""Prompts of a wanted number of tokens, made from texts that ship with the package. The same ones every time.

Two prompts of different `case` part within their first words, so none finds the other in a cache; the same
case and length give the same prompt. Knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.errors import RequestError

QUESTION = "Now say the most important of it in one sentence."
_FINE = 64
"""Characters that are tried one by one, to end on the wanted number of tokens exactly."""

Message = dict[str, str]


class Encodes(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


@dataclass(frozen=True)
class Prompt:
    """`ids` [n]: what `messages` are to the model."""

    messages: tuple[Message, ...]
    ids: npt.NDArray[np.int64]


class Prompts:
    """`tokenizer`: the artifact's own."""

    def __init__(self, tokenizer: Encodes) -> None:
        self._tokenizer = tokenizer
        chats = packaged_chats()
        # English alone: a language that is written without spaces has words as long as a text
        english = (m["content"] for language, chat in chats if language == "en" for m in chat)
        self._words = " ".join(english).split(" ")
        self._questions = [next(m["content"] for m in chat if m["role"] == "user") for _, chat in chats]
        self._made: dict[tuple[int, int], Prompt] = {}
        self._fresh = 1000
        # a template that adds a system message of its own would make all prompts begin alike
        self._system = self._takes_system()

    def fresh(self) -> int:
        """A case that was never given before."""
        self._fresh += 1
        return self._fresh

    def of(self, tokens: int, case: int) -> Prompt:
        """A prompt of `tokens` tokens. Raises NotMeasured where the template alone is longer, or the texts shorter."""
        key = (tokens, case)
        if key not in self._made:
            if len(self._made) > 64:
                self._made.clear()
            self._made[key] = self._make(tokens, case)
        return self._made[key]

    def questions(self, count: int) -> list[Prompt]:
        """`count` short questions, each with the same short system message: as chats of one application begin."""
        found = [self._prompt(0, question) for question in self._questions[:count]]
        if len(found) < count:
            raise NotMeasured(f"{count} questions are wanted; {len(found)} ship with the package")
        return found

    def asking(self, text: str) -> Prompt:
        """One message of a user, and no system message but the template's own."""
        return self._encoded(({"role": "user", "content": text},))

    @property
    def turn_tokens(self) -> int:
        """Tokens that `next_turn` adds behind an empty answer."""
        prompt = self._prompt(0, "a")
        return len(self.next_turn(prompt, "").ids) - len(prompt.ids)

    def next_turn(self, prompt: Prompt, answer: str) -> Prompt:
        """`prompt`, its `answer`, and one more question."""
        return self._encoded(
            (*prompt.messages, {"role": "assistant", "content": answer}, {"role": "user", "content": QUESTION})
        )

    def _make(self, tokens: int, case: int) -> Prompt:
        at = case * 97 % len(self._words)
        words = self._words[at:] + self._words[:at]
        low, high = 0, min(len(words), tokens)  # a word has at least one token
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._prompt(case, " ".join(words[:middle])).ids) <= tokens:
                low = middle
            else:
                high = middle - 1
        text, rest = " ".join(words[:low]), " " + " ".join(words[low:])
        best = self._prompt(case, text)
        for extra in range(1, _FINE):
            if len(best.ids) == tokens or extra > len(rest):
                break
            longer = self._prompt(case, text + rest[:extra])
            if len(longer.ids) <= tokens:
                best = longer
        # a few tokens less are told by every number that counts them; a text that is too short is something else
        if not tokens - 8 <= len(best.ids) <= tokens:
            raise NotMeasured(
                f"a prompt of {tokens:,} tokens cannot be made: this model's template and the packaged texts give "
                f"{len(best.ids):,}"
            )
        return best

    def _prompt(self, case: int, text: str) -> Prompt:
        if self._system:
            opening = {"role": "system", "content": f"{case} is the number of this chat. Be brief."}
            return self._encoded((opening, {"role": "user", "content": text}))
        return self._encoded(({"role": "user", "content": f"{case}. {text}"},))

    def _encoded(self, messages: tuple[Message, ...]) -> Prompt:
        return Prompt(messages, np.array(self._tokenizer.encode_chat(messages), dtype=np.int64))

    def _takes_system(self) -> bool:
        try:
            self._tokenizer.encode_chat(({"role": "system", "content": "a"}, {"role": "user", "content": "b"}))
        except RequestError:
            return False
        return True


def packaged_chats() -> list[tuple[str, list[Message]]]:
    """(language, messages) of the gate's held-out chats. Read as a file: a machine that only serves has not what
    that room imports."""
    data = (resources.files("hermes_deploy") / "verification" / "heldout.jsonl").read_text(encoding="utf-8")
    return [(chat["language"], chat["messages"]) for chat in map(json.loads, data.splitlines())]
