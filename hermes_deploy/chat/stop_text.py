"""Stop texts across pieces: what may be shown of an answer that must end before any of them.

Held back is only what could still become the start of a stop text. The answer ends at the stop that
is complete first (of several complete at the same character, the longest); how the text was cut into
pieces makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_deploy.chat.messages import check_unicode
from hermes_deploy.errors import RequestError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


class StopText:
    """One a request. Raises RequestError for an empty stop text, too many, or one that is too long."""

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOPS:
            raise RequestError(f"stop has {len(stops)} texts; at most {MAX_STOPS} are taken")
        for stop in stops:
            if not stop or len(stop) > MAX_STOP_CHARACTERS:
                raise RequestError(f"a stop text has {len(stop)} characters; allowed are 1 to {MAX_STOP_CHARACTERS}")
            check_unicode(stop, "a stop text")
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether the answer has ended). After the end nothing is shown."""
        if self._stopped:
            return "", True
        if not self._stops:
            return text, False
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return buffer[: min(found)[1]], True
        keep = self._could_begin(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """What was held back, when the answer ended for another reason."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that some stop text begins with."""
        for length in range(min(len(buffer), self._longest - 1), 0, -1):
            end = buffer[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
