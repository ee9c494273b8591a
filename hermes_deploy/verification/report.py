"""gate-report.html: what the gate found, for people. One file, opened from disk, nothing loaded.

Takes gate results and facts about the build; gives text that depends on these alone (no clock, no
path). No script; a policy in the page forbids what is not in it. All text that comes from models and
chats is escaped. `plots` draws, `report_style` dresses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from hermes_deploy.verification.divergence import median_divergence
from hermes_deploy.verification.measures import CONFIDENT
from hermes_deploy.verification.plots import kl_plot, layer_plot
from hermes_deploy.verification.report_style import STYLE
from hermes_deploy.verification.result import Chain, Choice, Divergence, Excerpt, GateResult

REPORT = "gate-report.html"

_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(results: Sequence[GateResult], path: Path, *, title: str, facts: Mapping[str, str]) -> None:
    """Writes `report_html` to `path`."""
    path.write_text(report_html(results, title=title, facts=facts), encoding="utf-8")


def report_html(results: Sequence[GateResult], *, title: str, facts: Mapping[str, str]) -> str:
    """`title` names the build ("SmolLM2-135M, int4-awq"); `facts` are its provenance, name by name:
    source, recipe, versions."""
    references = dict.fromkeys(result.reference for result in results)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
        f"<title>Gate: {_text(title)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        "<p>Does what will be served answer like the model that it was made from? Every number below "
        "compares the very weights of an engine with this reference:</p>",
        *(f'<p class="reference">{_text(reference)}</p>' for reference in references),
        _verdicts(results),
        *(_section(result) for result in results),
        "<footer><h2>Where this comes from</h2>",
        _pairs(facts),
        "</footer></main></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _verdicts(results: Sequence[GateResult]) -> str:
    rows = [
        f'<li><a href="#{_id(result)}">{_text(result.target)}</a> {_text(result.precision)} '
        f'<strong class="{"good" if result.passed else "bad"}">{_verdict(result)}</strong></li>'
        for result in results
    ]
    return f'<ul class="verdicts">{"".join(rows)}</ul>'


def _verdict(result: GateResult) -> str:
    return "passed" if result.passed else "not passed"


def _id(result: GateResult) -> str:
    return f"target-{escape(result.target)}"


def _section(result: GateResult) -> str:
    problems = "".join(f"<li>{_text(problem)}</li>" for problem in result.problems)
    parts = [
        f'<section id="{_id(result)}"><h2>{_text(result.target)}: {_text(result.recipe)}, {_verdict(result)}</h2>',
        f'<ul class="problems">{problems}</ul>' if problems else "",
        _measures(result),
        f"<p>{result.measures.positions:,} positions of {result.chats} chats; {result.measures.confident_positions:,} "
        f"where the reference is sure (its best logit is more than {CONFIDENT:g} above the second). Perplexity of the "
        f"reference: {result.measures.reference_perplexity:.3g}. Intervals: 95 %, from drawing whole chats again a "
        f"thousand times. Furthest weight: {_text(result.worst_tensor or 'none')}.</p>",
        f"<h3>How far apart at each position</h3><figure>{kl_plot(result)}</figure>",
        _chain(result.chain) if result.chain else "",
        _divergences(result.divergences) if result.divergences else "",
        _worst(result.worst) if result.worst else "",
        f'<p class="small">weights: sha256 <code>{_text(result.tensors_sha256)}</code></p></section>',
    ]
    return "\n".join(part for part in parts if part)


def _measures(result: GateResult) -> str:
    found, allowed = result.measures, result.thresholds
    rows = []
    for name, what, value, limit in (
        ("kl", "mean KL, nats", f"{found.kl:.4g}", "max_kl"),
        ("top1", "equal first choice", f"{found.top1:.4f}", "min_top1"),
        (
            "top1_confident",
            "equal first choice where the reference is sure",
            f"{found.top1_confident:.4f}",
            "min_top1_confident",
        ),
        (
            "perplexity_ratio",
            "perplexity over the reference's",
            f"{found.perplexity_ratio:.4f}",
            "max_perplexity_ratio",
        ),
        ("tensor_error", "furthest weights, relative error", f"{found.tensor_error:.4g}", "max_tensor_error"),
    ):
        interval = result.intervals.get(name)
        span = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        rule = (
            ("at most " if limit.startswith("max") else "at least ") + f"{allowed[limit]:g}" if limit in allowed else ""
        )
        over = limit in allowed and not (
            getattr(found, name) <= allowed[limit]
            if limit.startswith("max")
            else getattr(found, name) >= allowed[limit]
        )
        mark = '<strong class="bad">over</strong>' if over else "within" if rule else "not asked"
        rows.append(
            f'<tr><th scope="row">{what}</th><td class="n">{value}</td><td class="n">{span}</td>'
            f'<td class="n">{rule}</td><td>{mark}</td></tr>'
        )
    return (
        '<div class="wide"><table><thead><tr><th scope="col">measure</th><th scope="col">found</th>'
        '<th scope="col">95 % interval</th><th scope="col">allowed</th><th scope="col"></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _chain(chain: Chain) -> str:
    cache = (
        f"<p>Keys and values in 8 bits, worst fit: {_text(chain.cache.where)}, moved {chain.cache.misfit:.3g} "
        "times as far as by scales made for these texts.</p>"
        if chain.cache
        else ""
    )
    largest = max(step.kl for step in chain.steps) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{_text(step.stage)}</th><td class="n">{step.kl:.4g}</td>'
        f'<td class="n">{step.logits:.4g}</td>{_meter(step.kl / largest)}</tr>'
        for step in chain.steps
    )
    return (
        f"<h3>Which stage it comes from</h3><p>Each stage against the one before, over {chain.positions} positions. "
        "Weights: checkpoint and stored weights in the same float32 decoder. Graph and kernels: that decoder and the "
        "graph as it runs.</p>"
        '<div class="wide"><table><thead><tr><th scope="col">stage</th><th scope="col">KL, nats</th>'
        '<th scope="col">error of logits</th><th scope="col"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{cache}"
        f"<h3>Error by layer</h3><figure>{layer_plot(chain)}</figure>"
    )


def _divergences(found: Sequence[Divergence]) -> str:
    median, more = median_divergence(found)
    equal = sum(each.at is None for each in found)
    items = "".join(_divergence(each) for each in found)
    return (
        "<h3>First other word</h3><p>The reference answers each prompt with its first choices; the place is the first "
        f"token that this build would not have chosen. Median: {median:g}{'+' if more else ''} tokens are equal before "
        f"it; {equal} of {len(found)} answers are equal to their end.</p>{items}"
    )


def _divergence(each: Divergence) -> str:
    where = f"all {each.length} tokens equal" if each.at is None else f"token {each.at + 1} of {each.length}"
    return (
        f"<details><summary>{where}: {_text(_end(each.prompt.strip()))}</summary>"
        f'<pre dir="auto">{_text(each.prompt)}<span class="same">{_text(each.shared)}</span>'
        f'<span class="other">{_text(each.rest)}</span></pre>'
        + (_choices(each.reference, each.candidate) if each.at is not None else "")
        + "</details>"
    )


def _end(text: str, most: int = 80) -> str:
    """The last words."""
    return text if len(text) <= most else "… " + text[-most:].partition(" ")[2]


def _worst(found: Sequence[Excerpt]) -> str:
    items = "".join(
        f"<details><summary>chat {each.chat}: mean KL {each.chat_kl:.3g}, {each.kl:.3g} at position {each.position}"
        f'</summary><pre dir="auto"><span class="same">{_text(each.before)}</span>'
        f'<span class="other">{_text(each.after)}</span></pre>{_choices(each.reference, each.candidate)}</details>'
        for each in found
    )
    return (
        "<h3>Worst chats</h3><p>Of each, the position where both are furthest apart: the text that both had read, "
        f"what stood next in the chat, and what each would have said.</p>{items}"
    )


def _choices(reference: Sequence[Choice], candidate: Sequence[Choice]) -> str:
    return f'<div class="sides">{_side("reference", reference)}{_side("this build", candidate)}</div>'


def _side(name: str, choices: Sequence[Choice]) -> str:
    rows = "".join(
        f'<tr><td><code dir="auto">{_token(text)}</code></td><td class="n">{share:.1%}</td>{_meter(share)}</tr>'
        for text, share in choices
    )
    return f"<table><caption>{name}</caption><tbody>{rows}</tbody></table>"


def _meter(share: float) -> str:
    full = share if math.isfinite(share) else 1.0  # of what is infinite
    return f'<td class="meter"><span style="width:{full:.1%}"></span></td>'


def _pairs(facts: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in facts.items())}</dl>"


def _token(text: str) -> str:
    """With spaces and line ends to be seen."""
    return _text(text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥"))


def _text(text: str) -> str:
    """Escaped, and without the characters that no page may hold."""
    return escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text))
