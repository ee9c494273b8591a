"""gate-report.html: whole, safe, the same every time, and with the numbers in it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hermes_deploy.verification import GateResult
from hermes_deploy.verification.measures import Measures
from hermes_deploy.verification.report import report_html, write_report
from hermes_deploy.verification.result import Chain, Divergence, Excerpt, Step

HOSTILE = "</pre><script>alert('x')</script>&\"\x00\x1b[31m\ud800￾‮ end"

RESULT = GateResult(
    passed=False,
    target="cpu",
    precision="int4",
    recipe="int4-rtn",
    reference="float32 numpy decoder over Demo (dequantized from GGUF Q4_1); 8200 held-out positions of 53 chats",
    measures=Measures(0.31, 0.7, 0.81, 1.045, 0.115, 8200, 5900, 26.6),
    intervals={
        "kl": (0.25, 0.38),
        "top1": (0.65, 0.75),
        "top1_confident": (0.77, 0.85),
        "perplexity_ratio": (0.99, 1.09),
    },
    chats=53,
    thresholds={"max_kl": 0.1, "min_top1": 0.5, "max_perplexity_ratio": 1.3, "max_tensor_error": 0.3},
    tensors_sha256="ab" * 32,
    worst_tensor="layers.0.qkv, outputs from 0, group 3",
    problems=("mean KL in nats is 0.31, allowed is at most 0.1",),
    kl_histogram=((1e-6, 3), (0.001, 5000), (0.1, 3000), (10.0, 197)),
    chain=Chain(512, (Step("weights", 0.3, 0.2), Step("graph and kernels", 0.01, 0.04)), (0.0, 0.1, 0.2, 0.15)),
    worst=(Excerpt(7, 17, 0.9, 3.5, HOSTILE, "after", ((" all", 0.53),), (("\n", 0.09),)),),
    divergences=(
        Divergence(HOSTILE, 24, 3, "The ship", HOSTILE, ((HOSTILE, 0.5),), (("x", 0.4),)),
        Divergence("prompt", 24, None, "all of it", "", (), ()),
    ),
)
FACTS = {"source": "demo <b>", "recipe": "int4-rtn"}


def page(*results: GateResult) -> ElementTree.Element:
    html = report_html(results, title="Demo <i>", facts=FACTS)
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))


def test_it_is_well_formed_and_text_of_models_stays_text() -> None:
    root = page(RESULT)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in tags and {"i", "b"}.isdisjoint(tags)
    assert "<script>alert('x')</script>" in "".join(root.itertext())
    assert "\x00" not in "".join(root.itertext())


def test_nothing_is_loaded_from_anywhere() -> None:
    html = report_html([RESULT], title="Demo", facts=FACTS)
    assert re.findall(r"""\b(?:src|href)=["'](?!#)""", html) == []
    assert "url(" not in html and "@import" not in html
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_it_says_what_was_found_what_is_allowed_and_what_the_reference_is() -> None:
    root = page(RESULT, replace(RESULT, target="sm80", passed=True, problems=()))
    text = " ".join("".join(root.itertext()).split())
    assert text.index("dequantized from GGUF Q4_1") < text.index("mean KL")
    for part in ("not passed", "sm80", "0.25 to 0.38", "at most 0.1", "not asked", "ab" * 32, "int4-rtn", "demo <b>"):
        assert part in text
    assert "token 4 of 24" in text and "all 24 tokens equal" in text and "3+" in text


def test_the_plots_hold_the_numbers() -> None:
    root = page(RESULT)
    kl, layers = [element for element in root.iter() if element.tag.endswith("svg")]
    titles = ["".join(bar.itertext()) for bar in layers.iter() if bar.tag.endswith("rect")]
    assert titles == ["embedding: 0", "layer 0: 0.1", "layer 1: 0.2", "last norm: 0.15"]
    heights = [float(bar.attrib["height"]) for bar in layers.iter() if bar.tag.endswith("rect")]
    assert heights[2] == max(heights) and heights[1] == pytest.approx(heights[2] / 2, abs=0.1)
    counts = [float(bar.attrib["height"]) for bar in kl.iter() if bar.tag.endswith("rect")]
    assert counts.index(max(counts)) == 1
    assert "mean 0.31" in "".join(kl.itertext())


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report([RESULT], tmp_path / name, title="Demo", facts=FACTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(tmp_path) not in (tmp_path / "one").read_text(encoding="utf-8")


def test_a_result_without_texts_and_stages_has_a_report_too() -> None:
    bare = replace(RESULT, chain=None, worst=(), divergences=(), worst_tensor="", intervals={}, kl_histogram=())
    assert page(bare) is not None
    everywhere_equal = replace(RESULT, chain=Chain(8, (Step("weights", 0.0, 0.0),), (0.0, 0.0, 0.0)))
    assert page(everywhere_equal) is not None


def test_a_stage_that_gives_no_number_is_drawn_too() -> None:
    worst = Chain(8, (Step("weights", math.inf, math.inf), Step("graph and kernels", 0.1, 0.1)), (0.0, 0.1, math.inf))
    broken = replace(RESULT, chain=worst, worst=(), divergences=(), problems=("a", "b"))
    html = report_html([broken], title="Demo", facts={})
    assert "inf" in html and "nan%" not in html and '="nan' not in html and '="inf' not in html
    assert GateResult.from_json(broken.to_json()) == broken
