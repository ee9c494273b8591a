"""The report's plots: what of a result is drawn, and how its places are labelled. Pure."""

from __future__ import annotations

import math

from hermes_deploy.verification.result import Chain, GateResult
from hermes_deploy.verification.svg import Bar, bar_chart


def kl_plot(result: GateResult) -> str:
    """Positions by KL, three bins a decade, with the mean and what is allowed of it."""
    bins = result.kl_histogram
    bars = [Bar(count, f"{count} positions from {edge:g} nats") for edge, count in bins]
    first = math.log10(bins[0][0]) if bins else 0.0

    def place(nats: float) -> float:
        return (math.log10(max(nats, 1e-12)) - first) * 3

    decades = {place(edge): f"{edge:g}" for index, (edge, _) in enumerate(bins) if index % 3 == 0}
    return bar_chart(
        bars,
        label=f"Positions by KL; the mean is {result.measures.kl:.3g} nats",
        ticks=decades,
        below="KL of a position, nats (logarithmic)",
        marks={
            place(result.measures.kl): f"mean {result.measures.kl:.2g}",
            place(result.thresholds["max_kl"]): f"allowed {result.thresholds['max_kl']:g}",
        },
    )


def layer_plot(chain: Chain) -> str:
    """Relative error of the residual stream after the embedding, each layer, and the last norm."""
    last = len(chain.by_layer) - 1
    names = ["embedding", *(f"layer {layer}" for layer in range(last - 1)), "last norm"]
    top = max((error for error in chain.by_layer if math.isfinite(error)), default=0.0) or 1.0  # infinity has no height
    bars = [Bar(min(error, top), f"{name}: {error:.3g}") for name, error in zip(names, chain.by_layer, strict=True)]
    step = max(1, math.ceil((last - 1) / 8))
    ticks = {layer + 1.5: str(layer) for layer in range(0, last - 1, step)}
    return bar_chart(
        bars,
        label=f"Relative error by layer; {max(chain.by_layer):.3g} at most",
        ticks=ticks,
        below="error of what is carried on after the embedding, each layer, and the last norm",
    )
