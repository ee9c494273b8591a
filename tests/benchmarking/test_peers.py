"""Ours beside other systems: which ratios count, what the workers say, how close to the memory a step is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hermes_deploy.benchmarking.bars import bars
from hermes_deploy.benchmarking.contest import Contestant, Lengths, measure_peak, measure_round
from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.benchmarking.rivals import Precision, Quality, add_ratios, counts, document, table
from hermes_deploy.benchmarking.roofline import Reads, bound, memory_bandwidth
from hermes_deploy.benchmarking.run import Opened
from hermes_deploy.benchmarking.worker import Worker, WorkerError
from hermes_deploy.verification.candidate import Candidate

WORKERS = Path(__file__).parents[2] / "scripts" / "bench" / "peer_workers"
INT4 = Precision(4, 32, 4, 32)
INT4_HEAD8 = Precision(4, 32, 8, 32)


def test_equal_block_and_head_precision_counts_whatever_the_kl() -> None:
    assert counts(Quality(INT4, 0.3), Quality(INT4, 0.1))[0]
    assert counts(Quality(INT4, None), Quality(INT4, None))[0]


@pytest.mark.parametrize(
    "theirs", [INT4_HEAD8, Precision(4, 64, 4, 32), Precision(8, 32, 4, 32), Precision(4, 32, 4, None)]
)
def test_other_precision_counts_only_where_our_kl_is_no_worse(theirs: Precision) -> None:
    assert counts(Quality(INT4, 0.1), Quality(theirs, 0.1))[0]
    judged, why = counts(Quality(INT4, 0.17), Quality(theirs, 0.1))
    assert not judged
    assert "0.17 against 0.1" in why
    assert not counts(Quality(INT4, 0.1), Quality(theirs, None))[0]


def found_of_two_rounds() -> Collected:
    found = Collected()
    for ours, theirs in ((100.0, 50.0), (90.0, 90.0)):
        found.keep(What("decode", "tokens/s", "ours", 1, 128), ours)
        found.keep(What("decode", "tokens/s", "theirs", 1, 128), theirs)
        found.keep(What("first token", "ms", "ours", 1, 128), ours)
        found.keep(What("first token", "ms", "theirs", 1, 128), theirs)
    found.keep(What("load", "s", "theirs"), 1.0)
    return found


def test_ratios_are_made_within_a_round_and_above_one_is_better_for_us() -> None:
    found = found_of_two_rounds()
    add_ratios(found, "ours", ["theirs"])
    assert found.values[What("ours against theirs: decode", "ratio", "theirs", 1, 128)] == [2.0, 1.0]
    assert found.values[What("ours against theirs: first token", "ratio", "theirs", 1, 128)] == [0.5, 1.0]


def test_a_round_that_one_side_lacks_gives_no_ratio_and_says_so() -> None:
    found = found_of_two_rounds()
    found.keep(What("decode", "tokens/s", "ours", 1, 128), 80.0)
    add_ratios(found, "ours", ["theirs"])
    (reason,) = found.left_out.values()
    assert "3 and 2 were measured" in reason


def test_the_table_keeps_what_does_not_count_in_brackets() -> None:
    found = found_of_two_rounds()
    add_ratios(found, "ours", ["theirs"])
    report = found.report({})
    assert "70 (50 to 90): **1.50x**" in table(report, ["ours", "theirs"], {"theirs": True})
    told = table(report, ["ours", "theirs"], {"theirs": False})
    assert "70 (50 to 90): [1.50x]" in told
    assert "| load, s | – | 1 |" in told
    said = document(report, {"theirs": {"counts": False}})
    assert said["systems"] == {"theirs": {"counts": False}}
    assert said["rows"]


def test_the_picture_has_a_bar_for_each_system_of_each_measure() -> None:
    found = found_of_two_rounds()
    add_ratios(found, "ours", ["theirs"])
    picture = ElementTree.fromstring(bars(found.report({}), ["ours", "theirs"]))
    assert len(picture.findall("{*}rect")) == 5
    ElementTree.fromstring(bars(Collected().report({}), ["ours"]))


def test_a_step_reads_its_weights_once_and_the_keys_of_every_stream() -> None:
    reads = Reads(weights=80_000_000, token=40_000)
    assert reads.a_step(1, 0) == 80_000_000
    assert reads.a_step(8, 500) == 240_000_000
    assert bound(reads, 24e9, 8, 500) == pytest.approx(800)
    assert memory_bandwidth(1) > 0


@pytest.fixture
def worker(artifact: Path) -> Iterator[Worker]:
    command = [sys.executable, str(WORKERS / "hermes_worker.py"), str(artifact)]
    with closing(Worker("hermes", command, {"PYTHONPATH": str(WORKERS.parents[2])})) as worker:
        yield worker


def test_a_worker_answers_as_many_tokens_as_were_asked_for_to_all_prompts(worker: Worker, opened: Opened) -> None:
    loaded = worker.load()
    assert loaded.seconds > 0
    assert "hermes-deploy" in loaded.facts["version"]
    prompts = [opened.prompts.of(160, case).ids.tolist() for case in (1, 2)]
    together = worker.ask(prompts, 6)
    assert [len(timeline.token_ids) for timeline in together] == [6, 6]
    times = [arrival.at for arrival in together[0].arrivals]
    assert times == sorted(times)
    assert times[0] > 0
    assert worker.ask(prompts[:1], 6)[0].token_ids == together[0].token_ids


def test_logits_of_a_worker_are_those_of_the_graph_that_is_served(
    worker: Worker, opened: Opened, artifact: Path, tmp_path: Path
) -> None:
    worker.load()
    sequences = [opened.prompts.of(160, case).ids.tolist()[:50] for case in (1, 2)]
    worker.logits(sequences, tmp_path / "logits.npy")
    graph = artifact / "hermes_engine" / "1" / "cpu" / "model.onnx"
    expected = [logits.copy() for _, _, logits in Candidate(graph, 50).answers(sequences)]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), np.concatenate(expected))


def test_a_round_measures_everything_once(worker: Worker, opened: Opened) -> None:
    loaded = worker.load()
    contestant, found = Contestant(worker, loaded.keeps), Collected()
    lengths = Lengths(
        prefill=150, contexts=(140, 150), decoded=150, streams=2, many=140, history=150, answer=2, filled=150
    )
    measure_round(0, [contestant], opened.prompts, lengths, found, lambda _: None)
    measure_peak(contestant, opened.prompts, lengths, found)
    # on busy cores one of two fast answers may be over before the other is seen to begin
    together = "decode, 140 tokens, 2 streams, hermes"
    assert set(found.left_out) <= {"decode, 2 streams, hermes"}
    expected = [
        "prefill, 150 tokens, 1 stream, hermes",
        "decode, 140 tokens, 1 stream, hermes",
        "decode, 150 tokens, 1 stream, hermes",
        together,
        "prompts and answers, 140 tokens, 2 streams, hermes",
        "first token, cold, 150 tokens, 1 stream, hermes",
        "first token, second turn, 150 tokens, 1 stream, hermes",
        "PSS, at most, 150 tokens, 2 streams, hermes",
    ]
    assert [str(what) for what in found.values] == [n for n in expected if n != together or not found.left_out]
    assert all(value > 0 for values in found.values.values() for value in values)


def test_a_worker_that_fails_says_what_and_where(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKERS / "hermes_worker.py"), str(tmp_path / "nothing")]
    with (
        closing(Worker("hermes", command, {"PYTHONPATH": str(WORKERS.parents[2])})) as worker,
        pytest.raises(WorkerError, match=r"hermes failed at 'load'.*nothing"),
    ):
        worker.load()


def test_a_worker_that_ends_gives_its_last_words_and_is_left_out_like_any_other() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such instruction')"]
    with (
        closing(Worker("other", command)) as worker,
        pytest.raises(NotMeasured, match=r"other ended with code 1 at 'load'(.|\n)*no such instruction"),
    ):
        worker.load()
