"""scripts/gpu/run.py, dry: every section runs here, and one that breaks does not lose the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = ROOT / "scripts" / "gpu"


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = folder / "gpu.json"
    command = [sys.executable, str(DRIVER / "run.py"), "--dry", "--json", str(out), "--folder", str(folder / "work")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    sections: dict[str, Any] = json.loads(out.read_text())["sections"]
    return done.returncode, sections


@pytest.mark.slow
def test_every_section_runs_without_a_gpu(tmp_path: Path) -> None:
    code, sections = run(tmp_path)
    assert code == 0, json.dumps(sections, indent=1)
    assert list(sections) == [
        "machine",
        "rtx-loads",
        "build",
        "correct-cuda",
        "correct-tensorrt",
        "speed-cuda",
        "speed-tensorrt",
    ]
    assert {answer["capability"] for answer in sections["rtx-loads"]["engines"]} >= {"CURRENT", "SM89", "SM120"}
    assert all(answer["built"] or answer["said"] for answer in sections["rtx-loads"]["engines"])
    assert {each["plan"] for each in sections["build"]["models"].values()}
    for kind in ("cuda", "tensorrt"):
        models = sections[f"correct-{kind}"]["models"]
        assert sorted(models) == ["tiny", "tiny-window"]
        calls = [call for model in models.values() for call in model["calls"].values()]
        assert max(call["max_abs_error"] for call in calls) < 2e-4
        assert {call["same_first_choice"] for call in calls} == {1.0}
        assert [(at["at"], at["streams"]) for at in sections[f"speed-{kind}"]["decode"]] == [
            (8, 1),
            (8, 4),
            (40, 1),
            (40, 4),
        ]


def test_a_section_that_breaks_leaves_its_traceback_and_the_next_one_runs(tmp_path: Path) -> None:
    code, sections = run(tmp_path, "--only", "correct-cuda", "machine")
    assert code == 1
    assert "run the section build first" in sections["correct-cuda"]["error"]
    assert "Traceback" in sections["correct-cuda"]["traceback"]
    assert sections["machine"]["ok"]


def test_what_the_driver_measures_notices_answers_from_a_wrong_row() -> None:
    sys.path.insert(0, str(DRIVER))
    try:
        from correctness import compare
    finally:
        sys.path.remove(str(DRIVER))
    import numpy as np

    from tests.runtime.fake_session import FakeSession
    from tests.runtime.sessions.session_subjects import VOCAB, fake_logits

    tokens = np.random.default_rng(0).integers(0, VOCAB, (4, 64))
    expected = np.stack([fake_logits(row) for row in tokens])
    right = FakeSession(slots=4, max_context=64, vocab_size=VOCAB, prefill_chunk=16)
    assert compare(right, tokens, expected)["ok"]
    wrong = FakeSession(slots=4, max_context=64, vocab_size=VOCAB, prefill_chunk=16)
    wrong.spoil = lambda logits: logits[::-1]
    found = compare(wrong, tokens, expected)
    assert not found["ok"]
    assert [name for name, call in found["calls"].items() if not call["ok"]] == [
        "ragged decode, any slots, any order",
        "a copied prefix",
    ]
