"""A model larger than memory can be calibrated and gated: its float32 weights would not fit into the peak.

A third of what is allowed is Python itself and what the reference keeps of the weights from token to token.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_calibration_reference_and_gate_stay_below_what_the_weights_would_take(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.verification.streamed_build", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks = {name: int(size) for name, size in (line.split() for line in done.stdout.splitlines())}
    weights = peaks.pop("float32")
    assert {"reference", "calibrate-fp8", "gate-cpu", "gate-sm89"} < set(peaks)
    assert max(peaks.values()) < 0.75 * weights, peaks
