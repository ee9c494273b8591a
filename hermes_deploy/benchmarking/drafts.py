"""What speculation gains: the same questions to a loop that guesses and one that does not, in turns.

Kinds of questions whose answers repeat the prompt more or less, and one whose answers cannot: drawn at a high
temperature. The texts ship with the package. An answer ends where the model ends it: what comes after that is
nobody's text, and repeats itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hermes_deploy.benchmarking.doors import InProcess, taken
from hermes_deploy.benchmarking.independence import Lone
from hermes_deploy.benchmarking.listening import Listener, Timeline
from hermes_deploy.benchmarking.prompts import Prompt, Prompts, packaged_chats
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Generation

GAIN = "speculation against none"
FREE = "drawn at temperature 1.2"
HOW = "with drafts"
GREEDY, DRAWN = Sampling(), Sampling(temperature=1.2, seed=7)
_TEXTS = 5
_PROGRAM = """def load(path):
    with open(path) as stream:
        rows = [line.strip().split(",") for line in stream]
    return rows


def average(rows, column):
    total = 0.0
    for row in rows:
        total += float(row[column])
    return total / len(rows)


def report(path):
    rows = load(path)
    for column in range(len(rows[0])):
        print(column, average(rows, column))
"""
_CHANGES = (
    "Rename the function average to mean",
    "Rename the argument path to file_name everywhere",
    "Replace the separator of the columns by a semicolon",
)


def questions(prompts: Prompts) -> dict[str, list[Prompt]]:
    """By kind, those whose answers repeat most first."""
    said = [m["content"] for language, chat in packaged_chats() if language == "en" for m in chat]
    texts = sorted(said, key=len, reverse=True)[:_TEXTS]
    asked = {
        "repeat a text": [f"Repeat the following text word for word.\n\n{text}" for text in texts],
        "correct a text": [
            "Correct the spelling of this text and change nothing else. Write the whole corrected text.\n\n"
            + text.replace(" the ", " teh ", 3)
            for text in texts
        ],
        "change a program": [
            f"{change} in this program and write the whole program again.\n\n```python\n{_PROGRAM}```"
            for change in _CHANGES
        ],
        "quote from a context": [
            f"Context:\n{text}\n\nQuote the two sentences of the context that matter most, word for word."
            for text in texts
        ],
        "summarize a text": [f"Summarize this text in three sentences.\n\n{text}" for text in texts],
    }
    found = {kind: [prompts.asking(text) for text in of_kind] for kind, of_kind in asked.items()}
    return {**found, FREE: prompts.questions(_TEXTS)}


def measure(
    guessing: InProcess, plain: InProcess, kind: str, prompts: Sequence[Prompt], tokens: int, found: Collected
) -> list[Timeline]:
    """One answer of at most `tokens` to each of `prompts` from both, in turns. The answers of `guessing`."""
    sampling, numbers = (DRAWN if kind == FREE else GREEDY), guessing.loop.metrics
    drafted, accepted = numbers.drafted_tokens, numbers.accepted_tokens
    answers: dict[InProcess, list[Timeline]] = {guessing: [], plain: []}
    for turn, prompt in enumerate(prompts):
        for door in (guessing, plain) if turn % 2 else (plain, guessing):
            answers[door].append(_answer(door, prompt, sampling, tokens))
    speeds = [_speed(answers[door]) for door in (guessing, plain)]
    drafted, accepted = numbers.drafted_tokens - drafted, numbers.accepted_tokens - accepted
    found.keep(What(GAIN, "ratio", kind, 1), speeds[0] / speeds[1])
    found.keep(What("decode with speculation", "tokens/s", kind, 1), speeds[0])
    found.keep(What("decode without speculation", "tokens/s", kind, 1), speeds[1])
    written = sum(len(answer.token_ids) for answer in answers[guessing])
    found.keep(What("share of the answer that was guessed", "share", kind, 1), accepted / written)
    if drafted:
        found.keep(What("share of the guesses that were right", "share", kind, 1), accepted / drafted)
    return answers[guessing]


def ended(lone: Lone, stop_ids: frozenset[int]) -> Lone:
    """`lone` up to where a stop token ends it."""
    end = next((at for at, token in enumerate(lone.tokens) if token in stop_ids), len(lone.tokens))
    return Lone(lone.tokens[:end], lone.margins)


def _answer(door: InProcess, prompt: Prompt, sampling: Sampling, tokens: int) -> Timeline:
    stop_ids = frozenset[int]() if sampling is DRAWN else door.stop_ids
    now = time.monotonic()
    return Listener(taken(door.loop.submit(Generation(prompt.ids, tokens, sampling, stop_ids))), now).done()


def _speed(answers: Sequence[Timeline]) -> float:
    """Tokens a second of all of them, each from its first piece on."""
    came = sum(arrival.tokens for answer in answers for arrival in answer.arrivals[1:])
    return came / sum(answer.arrivals[-1].at - answer.arrivals[0].at for answer in answers)
