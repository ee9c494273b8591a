"""Hub ids, against a small hub on loopback. Each opening is a process of its own: the hub's library
reads its environment once, when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_deploy.checkpoints import open_checkpoint
from tests.checkpoints.hub_server import COMMIT, REPO, Hub, serving

OPEN = """
import json, sys
from pathlib import Path
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.errors import CheckpointError
try:
    c = open_checkpoint(sys.argv[1], revision=json.loads(sys.argv[2]), cache_dir=Path(sys.argv[3]))
    print(json.dumps({"name": c.name, "revision": c.revision, "sha256": c.sha256, "source": c.source}))
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    (tiny / "pytorch_model.bin").write_bytes(b"a pickle")
    (tiny / "consolidated.safetensors").write_bytes(b"the same weights again")
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n")
    with serving(tiny) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_in_process(
    url: str, cache: Path, repo: str = REPO, revision: str | None = None, **environment: str
) -> dict[str, str]:
    arguments = [sys.executable, "-c", OPEN, repo, json.dumps(revision), str(cache)]
    variables = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache / "home"), "NO_PROXY": "*", **environment}
    result = subprocess.run(arguments, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_a_hub_id_is_fetched_once_without_pickles_and_opens_offline_afterwards(hub: Hub, cache: Path) -> None:
    first = open_in_process(hub.url, cache)
    assert first == {
        "name": REPO,
        "revision": COMMIT,
        "source": f"hub {REPO}",
        "sha256": open_checkpoint(str(hub.folder)).sha256,
    }
    assert "model.safetensors" in hub.asked
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & set(hub.asked)
    hub.asked.clear()
    assert open_in_process(hub.url, cache, HF_HUB_OFFLINE="1") == first
    assert hub.asked == []


def test_a_revision_is_resolved_to_its_commit(hub: Hub, cache: Path) -> None:
    assert open_in_process(hub.url, cache, revision="v1")["revision"] == COMMIT
    message = open_in_process(hub.url, cache, revision="v9")["error"]
    assert message == f"{REPO} has no revision 'v9'; give a branch, tag or commit of it"


def test_a_repository_that_is_not_there_or_gated_says_what_to_do(hub: Hub, cache: Path) -> None:
    message = open_in_process(hub.url, cache, "tiny-org/nothing")["error"]
    assert "tiny-org/nothing is neither a local folder nor a repository that the hub shows" in message
    message = open_in_process(hub.url, cache, "gated/model")["error"]
    assert message.startswith("gated/model is gated: accept its licence")


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_without_a_network_and_without_a_cache_it_says_so(cache: Path, environment: dict[str, str]) -> None:
    message = open_in_process("http://127.0.0.1:9", cache, **environment)["error"]
    assert message.startswith(f"{REPO} could not be fetched and is not whole in the cache")
    assert "\n" not in message


def test_a_changed_weight_in_the_cache_is_found(hub: Hub, cache: Path) -> None:
    open_in_process(hub.url, cache)
    (link,) = cache.glob("hub/models--*/snapshots/*/model.safetensors")
    blob = link.resolve()
    data = bytearray(blob.read_bytes())
    data[-2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    message = open_in_process(hub.url, cache, HF_HUB_OFFLINE="1")["error"]
    assert "is damaged: its sha256 is" in message
    assert f"Delete {blob}" in message


def test_a_repository_of_pickles_only_is_refused(hub: Hub, cache: Path) -> None:
    for path in hub.folder.glob("*.safetensors"):
        path.unlink()
    message = open_in_process(hub.url, cache)["error"]
    assert message.startswith(f"{REPO} has no safetensors weights; pickled ones (.bin, .pt) run code")
    assert "pytorch_model.bin" not in hub.asked


def test_a_download_that_breaks_off_is_one_clear_message_and_leaves_no_checkpoint(hub: Hub, cache: Path) -> None:
    hub.cut = "model.safetensors"
    message = open_in_process(hub.url, cache)["error"]
    assert message.startswith(f"{REPO} could not be fetched")
    assert not list(cache.glob("hub/models--*/snapshots/*/model.safetensors"))
    hub.cut = ""
    assert open_in_process(hub.url, cache)["revision"] == COMMIT
