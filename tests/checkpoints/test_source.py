"""What the name of a model means, and what is said when it means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.source import default_cache
from hermes_deploy.errors import CheckpointError


def test_a_local_folder_wins_over_a_hub_id_of_the_same_spelling(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "org").mkdir()
    tiny.rename(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").source == "folder name"


@pytest.mark.parametrize(
    "name", ["nothing", "./nothing", "/no/such/folder", "a/b/c", "model.gguf", "org/model.gguf", ""]
)
def test_a_name_that_is_nothing_lists_what_a_model_can_be(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"smollm2 \(the demo\), a folder .*, a \.gguf file, or a hub id"):
        open_checkpoint(name)


def test_a_file_of_another_kind_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file, but not a \.gguf; a model is"):
        open_checkpoint(str(tiny / "model.safetensors"))


def test_a_revision_is_for_hub_ids_only(tiny: Path) -> None:
    for model in (str(tiny), "smollm2"):
        with pytest.raises(CheckpointError, match=r"--revision v1 was given, but .* is not a hub id"):
            open_checkpoint(model, revision="v1")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HERMES_DEPLOY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "hermes-deploy"
    monkeypatch.setenv("HERMES_DEPLOY_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("HERMES_DEPLOY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "hermes-deploy"


def test_without_a_home_the_message_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HERMES_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(CheckpointError, match="name a folder in HERMES_DEPLOY_CACHE"):
        open_checkpoint("smollm2")


def test_a_folder_whose_name_is_not_text_is_refused(tiny: Path) -> None:
    odd = tiny.with_name("odd \udcff")
    tiny.rename(odd)
    with pytest.raises(CheckpointError, match=r"odd \\udcff' is not UTF-8 text; rename it"):
        open_checkpoint(str(odd))
