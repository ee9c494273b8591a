"""Requests that can be ended by a key: how a caller whom Triton does not see can still let go, or be missed.

A request may carry a `cancel_key`, a secret of its caller. Three things then end it: a `cancel` with the key; the
end of a `hold`, which is a call of `hermes_engine` that stays open, so that Triton tells of its caller's cancellation,
deadline, crash or lost connection; and, where the request asked for a lease, that nobody renews it for so long. The
hold is for the ensemble, of whose callers Triton 2.51 tells nothing; the lease is for a caller whose machine or network
is gone without a word, on either door.

Hold and request may come in either order, and a caller may be gone before its request is here: a key that was let go
is remembered for a while. A thread looks at all of them; it sleeps while there are none.

Time in which this process did not run is no time: whoever renewed meanwhile would be ended before it is heard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hermes_deploy.errors import RequestError
from hermes_deploy.serving.tensor_io import error_response

POLL = 0.02
"""Seconds between two looks at all holds, at least."""
POLL_A_HOLD = 0.004
"""More of that for each hold: a look is a message to tritonserver and back, which the engine's own compete with."""
LEASE_POLL = 0.2
"""Seconds between two looks at leases while there is no hold."""
LONGEST_PAUSE = 1.0
"""Seconds: what passes between two looks beyond that was not run, and does not count."""
MEMORY = 30.0
"""Seconds for which a key is known whose request is not here (yet)."""


@dataclass(frozen=True)
class Lease:
    """`seconds`: within which it has to be renewed; None: it need not be."""

    key: str
    seconds: float | None


@dataclass
class _Kept:
    """What is known of one key. `end`: ends its request, None while there is none."""

    since: float
    """When it was last renewed, or was first heard of, by `Leases._now`."""
    holder: Any = None
    end: Callable[[str], None] | None = None
    seconds: float | None = None
    over: bool = False
    """It was let go."""


class Leases:
    """`pb_utils`: Triton's module, handed in. `most`: keys that can be known at once. Every method may be called
    from any thread."""

    def __init__(self, pb_utils: Any, most: int) -> None:
        self._triton = pb_utils
        self._most = most
        self._kept: dict[str, _Kept] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._clock, self._looked = 0.0, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def hold(self, key: str, sender: Any) -> None:
        """Keeps `sender` open until the request of `key` has ended. RequestError when that cannot be."""
        with self._changed:
            kept = self._of(key)
            if kept.holder is not None:
                raise RequestError(f"{_IN_USE}: it is held already")
            kept.holder, kept.since = sender, self._now()
            self._changed.notify()

    def renew(self, keys: Iterable[str]) -> None:
        """The lease of each begins anew. Keys that are not known are of requests that have ended, or are to come."""
        with self._changed:
            for key in keys:
                kept = self._kept.get(key)
                if kept is not None and not kept.over:
                    kept.since = self._now()

    def cancel(self, key: str) -> None:
        """Ends the request of `key` at its next step. RequestError NOT_FOUND when there is none."""
        with self._changed:
            kept = self._kept.get(key)
            if kept is None or kept.over:
                raise RequestError("no request with this cancel_key runs or waits here; it may have ended", "NOT_FOUND")
            self._let_go(kept)

    @contextmanager
    def taken(self, lease: Lease | None, end: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
        """While the request of `lease` is here; `end` is called, once at most, when it is let go, with what its caller
        should be told: nothing where it wanted that.

        Gives a function that says whether it was, for a request that had nothing to end yet. RequestError when
        another request has the same key.
        """
        if lease is None:
            yield lambda: False
            return
        with self._changed:
            kept = self._of(lease.key)
            if kept.end is not None:
                raise RequestError(f"{_IN_USE}: a request with it is running")
            kept.end, kept.seconds, kept.since = end, lease.seconds, self._now()
            self._changed.notify()
        try:
            yield lambda: kept.over
        finally:
            with self._changed:
                self._forget(lease.key, kept)

    def close(self) -> None:
        """Ends all holds; the requests themselves are not this object's."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _of(self, key: str) -> _Kept:
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= self._most:
                raise RequestError(
                    f"{len(self._kept)} requests with a cancel_key are known, which is all that this server takes. "
                    "Try again later.",
                    "RESOURCE_EXHAUSTED",
                )
            kept = self._kept[key] = _Kept(self._now())
        return kept

    def _let_go(self, kept: _Kept, why: str = "") -> None:
        before, kept.over, kept.since = kept.over, True, self._now()
        if kept.end is not None and not before:
            kept.end(why)  # after `over` is said: see `taken`

    def _forget(self, key: str, kept: _Kept) -> None:
        del self._kept[key]
        self._end_hold(kept)

    def _end_hold(self, kept: _Kept, error: RequestError | None = None) -> None:
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        holder, kept.holder = kept.holder, None
        if holder is not None and error is not None:
            holder.send(error_response(self._triton, error), flags=final)
        elif holder is not None:
            holder.send(flags=final)

    def _now(self) -> float:
        """Seconds that this process has run."""
        now = time.monotonic()
        self._clock += min(now - self._looked, LONGEST_PAUSE)
        self._looked = now
        return self._clock

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._kept or self._closing)
                if self._closing:
                    for kept in self._kept.values():
                        self._end_hold(kept)
                    return
                now = self._now()
                for key, kept in list(self._kept.items()):
                    self._look(key, kept, now)
                held = sum(kept.holder is not None for kept in self._kept.values())
                if not held:
                    self._changed.wait(LEASE_POLL)
            if held:
                time.sleep(max(POLL, held * POLL_A_HOLD))

    def _look(self, key: str, kept: _Kept, now: float) -> None:
        if kept.holder is not None and kept.holder.is_cancelled():
            self._end_hold(kept)
            self._let_go(kept)
        elif kept.end is None:
            if now - kept.since > MEMORY:
                told = f"no request came with the key that was held for {MEMORY:g} s"
                self._end_hold(kept, RequestError(told, "NOT_FOUND"))
                self._forget(key, kept)
        elif kept.seconds is not None and not kept.over and now - kept.since > kept.seconds:
            self._let_go(kept, f"nobody renewed its lease for {kept.seconds:g} s, so its caller was taken to be gone")


_IN_USE = "this cancel_key is in use; give every request a random one of its own"
