"""The token loop's numbers on Triton's metrics endpoint, from zero traffic on.

A thread of its own copies them once a second, so that counting costs the token loop nothing. Triton's
Python API takes one observation of a histogram a call, at 20 to 50 us: too much for a token. A histogram
is therefore written as what it is made of, counters `NAME_bucket{le=…}`, `NAME_sum` and `NAME_count`:
`histogram_quantile(0.99, rate(NAME_bucket[1m]))` works as always, only the TYPE line says counter.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from hermes_deploy.runtime.metrics import REJECTIONS, Histogram, Metrics

INTERVAL = 1.0
"""Seconds between two copies."""

Kind = Literal["gauge", "counter"]
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    name: str
    kind: Kind
    help: str
    read: Callable[[Metrics], dict[Labels, float]]
    """Every series of the family, by its labels."""


def _one(name: str, kind: Kind, text: str, read: Callable[[Metrics], float]) -> Family:
    return Family(name, kind, text, lambda m: {(): float(read(m))})


def _by_reason(name: str, text: str, read: Callable[[Metrics], dict[str, int]]) -> Family:
    return Family(name, "counter", text, lambda m: {(("reason", r),): float(n) for r, n in read(m).items()})


def _histogram(name: str, text: str, read: Callable[[Metrics], Histogram]) -> Iterator[Family]:
    def buckets(m: Metrics) -> dict[Labels, float]:
        histogram = read(m)
        bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
        return {(("le", b),): float(n) for b, n in zip(bounds, accumulate(histogram.counts), strict=True)}

    yield Family(f"{name}_bucket", "counter", f"{text}: observations up to le", buckets)
    yield _one(f"{name}_sum", "counter", f"{text}: sum of all", lambda m: read(m).total)
    yield _one(f"{name}_count", "counter", f"{text}: number of observations", lambda m: sum(read(m).counts))


REJECTED = _by_reason("hermes_requests_rejected_total", "requests that were refused, by reason", lambda m: m.rejections)

FAMILIES: tuple[Family, ...] = (
    _one("hermes_healthy", "gauge", "1 while the engine works, 0 once it was given up", lambda m: m.healthy),
    _one("hermes_queue_depth", "gauge", "requests that wait for a slot", lambda m: m.queue_depth),
    _one("hermes_active_slots", "gauge", "slots that hold a chat", lambda m: m.active_slots),
    _one("hermes_free_slots", "gauge", "slots that hold none", lambda m: m.free_slots),
    _one("hermes_kv_tokens", "gauge", "tokens of running chats in the KV cache", lambda m: m.kv_tokens),
    _one(
        "hermes_kv_cached_tokens",
        "gauge",
        "tokens of ended chats that are kept for the next prompt that begins with them",
        lambda m: m.kv_cached_tokens,
    ),
    _one("hermes_kv_capacity_tokens", "gauge", "tokens that the KV cache can hold", lambda m: m.kv_capacity_tokens),
    _one(
        "hermes_kv_use_ratio",
        "gauge",
        "share of the KV cache that running chats hold, 0 to 1",
        lambda m: m.kv_tokens / m.kv_capacity_tokens,
    ),
    _one(
        "hermes_prefix_hit_ratio",
        "gauge",
        "share of all prompt tokens so far that were found in the KV cache, 0 to 1",
        lambda m: m.prefix_hit_ratio,
    ),
    _one("hermes_prompt_tokens_total", "counter", "prompt tokens, found or read in", lambda m: m.prompt_tokens),
    _one(
        "hermes_cached_prompt_tokens_total",
        "counter",
        "prompt tokens that were found in the KV cache",
        lambda m: m.cached_prompt_tokens,
    ),
    _one("hermes_output_tokens_total", "counter", "generated tokens", lambda m: m.output_tokens),
    _one(
        "hermes_drafted_tokens_total",
        "counter",
        "guessed tokens that were checked in one step",
        lambda m: m.drafted_tokens,
    ),
    _one(
        "hermes_accepted_tokens_total",
        "counter",
        "guessed tokens that became part of an answer",
        lambda m: m.accepted_tokens,
    ),
    _one("hermes_engine_failures_total", "counter", "engine calls that raised", lambda m: m.engine_failures),
    _one(
        "hermes_cancellations_total",
        "counter",
        "requests that their caller cancelled, or whose caller went away",
        lambda m: m.endings["cancelled"],
    ),
    _by_reason("hermes_requests_finished_total", "requests that held a slot or a place, by end", lambda m: m.endings),
    REJECTED,
    *_histogram("hermes_queue_time_seconds", "time that a request waited for its slot", lambda m: m.queue_time),
    *_histogram(
        "hermes_time_to_first_token_seconds",
        "from the arrival of a request to its first token",
        lambda m: m.time_to_first_token,
    ),
    *_histogram(
        "hermes_inter_token_latency_seconds", "between two tokens of one answer", lambda m: m.inter_token_latency
    ),
    *_histogram("hermes_prefill_time_seconds", "engine time of one prefill chunk", lambda m: m.prefill_time),
    *_histogram(
        "hermes_decode_time_seconds",
        "engine time of one batched decode, or of one check of a draft",
        lambda m: m.decode_time,
    ),
    *_histogram(
        "hermes_loop_time_seconds", "of one step, what was not the engine: scheduling, sampling", lambda m: m.loop_time
    ),
)
"""Every series that there is; docs/metrics.md lists them."""


class TritonMetrics:
    """Publishes `metrics` until `close`. `pb_utils`: Triton's module, handed in."""

    def __init__(self, pb_utils: Any, metrics: Metrics, interval: float = INTERVAL) -> None:
        self._metrics = metrics
        self._interval = interval
        kinds = {"gauge": pb_utils.MetricFamily.GAUGE, "counter": pb_utils.MetricFamily.COUNTER}
        self._families = {
            f.name: pb_utils.MetricFamily(name=f.name, description=f.help, kind=kinds[f.kind]) for f in FAMILIES
        }
        self._series: dict[tuple[str, Labels], Any] = {}
        self._sent: dict[tuple[str, Labels], float] = {}
        self.publish()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        for family in FAMILIES:
            for labels, value in family.read(self._metrics).items():
                key = (family.name, labels)
                if key not in self._series:
                    self._series[key] = self._families[family.name].Metric(labels=dict(labels))
                    self._sent[key] = 0.0
                elif value == self._sent[key]:
                    continue
                if family.kind == "gauge":
                    self._series[key].set(value)
                elif value > self._sent[key]:
                    self._series[key].increment(value - self._sent[key])
                self._sent[key] = value

    def close(self) -> None:
        """Publishes a last time. Triton wants the series gone before their families."""
        self._closed.set()
        self._thread.join()
        self._series.clear()
        self._families.clear()

    def _run(self) -> None:
        told = False
        while True:
            last = self._closed.wait(self._interval)
            try:
                self.publish()
                told = False
            except Exception:  # numbers must not end the thread that brings the next ones; the log says it once
                if not told:
                    traceback.print_exc()
                told = True
            if last:
                return


class StepRefusals:
    """What `step` of the ensemble refuses, in the engine's family: nothing of such a request comes to the engine.

    Triton gives a family of one name to every model that asks, but a series of one name must be one model's: who is
    unloaded takes it along. Hence the label `step`.
    """

    def __init__(self, pb_utils: Any, step: str) -> None:
        kind = pb_utils.MetricFamily.COUNTER
        self._family = pb_utils.MetricFamily(name=REJECTED.name, description=REJECTED.help, kind=kind)
        self._series = {
            reason: self._family.Metric(labels={"reason": reason, "step": step}) for reason in REJECTIONS.values()
        }

    def count(self, code: str) -> None:
        """Waits for Triton, some 50 us. `code`: what the caller is told."""
        self._series[REJECTIONS.get(code, "invalid")].increment(1)

    def close(self) -> None:
        """Triton wants the series gone before their family."""
        self._series.clear()
