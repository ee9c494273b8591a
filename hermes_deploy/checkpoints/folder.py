"""A folder in Hugging Face layout -> `Checkpoint`. Safetensors only; pickled weights are refused.

Everything the folder says is untrusted: names in the index must be plain files of this folder,
sizes are bounded, tensors are checked against the configuration before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path

from hermes_deploy.checkpoints import chat_settings, notices
from hermes_deploy.checkpoints.checkpoint import Checkpoint, LazyTensor
from hermes_deploy.checkpoints.fingerprint import sha256_files
from hermes_deploy.checkpoints.folder_tokenizer import FILES as TOKENIZER_FILES
from hermes_deploy.checkpoints.folder_tokenizer import read_folder_tokenizer, read_json, read_text
from hermes_deploy.checkpoints.hf_config import parse_config
from hermes_deploy.checkpoints.layout import select_tensors
from hermes_deploy.checkpoints.quantized_source import refuse_quantized_folder
from hermes_deploy.checkpoints.safetensors_file import read_safetensors
from hermes_deploy.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CARD = "README.md"
_MAX_CARD = 4 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_folder(
    folder: Path, *, name: str | None = None, source: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Raises CheckpointError when the folder is not a whole, supported chat checkpoint."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{folder} has no config.json; expected a folder in Hugging Face layout")
    raw = read_json(config_file)
    config = parse_config(raw, str(config_file))
    refuse_quantized_folder(folder)
    shards = _shards(folder)
    found: dict[str, LazyTensor] = {}
    for shard, promised in shards.items():
        tensors = read_safetensors(folder / shard)
        if promised is not None and promised != set(tensors):
            odd = sorted(promised ^ set(tensors))[0]
            raise CheckpointError(f"{folder / shard} does not hold what {INDEX} says: {odd}. Get both files again.")
        twice = found.keys() & tensors.keys()
        if twice:
            raise CheckpointError(f"{folder}: {sorted(twice)[0]} is in two shards")
        found |= tensors
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file)
    tokenizer = read_folder_tokenizer(folder)
    family, files = chat_settings.tokenizer_files(
        tokenizer.tokenizer_json,
        template=tokenizer.template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        eos_ids=[
            *chat_settings.token_ids(generation.get("eos_token_id"), str(generation_file)),
            *chat_settings.token_ids(raw.get("eos_token_id"), str(config_file)),
        ],
        vocab_size=config.vocab_size,
        where=str(folder),
    )
    used = [*shards, INDEX, "config.json", "generation_config.json", *TOKENIZER_FILES]
    model_card = read_card(folder)
    license_id, license_text, citation = _notices(folder, model_card)
    return Checkpoint(
        name=name or folder.resolve().name,
        source=source or f"folder {folder.resolve().name}",
        revision=revision,
        sha256=sha256_files((file, folder / file) for file in used if (folder / file).is_file()),
        family=family,
        config=config,
        tensors=select_tensors(found, config, str(folder)),
        tokenizer=files,
        generation=chat_settings.generation_defaults(generation, str(generation_file)),
        license_id=license_id,
        license_text=license_text,
        citation=citation,
        model_card=model_card,
    )


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """Shard file name -> tensors that the index promises in it (None: there is no index)."""
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return {SINGLE: None}
        raise _no_weights(folder)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map. Get the file again.")
    promised: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        # A plain name only: an index must not reach out of its folder.
        plain = isinstance(shard, str) and Path(shard).name == shard and "\\" not in shard
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} places {tensor} in {shard!r}; only .safetensors files of the same folder are read"
            )
        promised.setdefault(shard, set()).add(tensor)
    shards: dict[str, set[str] | None] = {shard: promised[shard] for shard in sorted(promised)}
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete: {', '.join(missing)} of {len(shards)} shards missing. Get the checkpoint again."
        )
    return shards


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        return CheckpointError(
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}); a pickle runs code when it is opened, "
            "so it is never read. Convert it to safetensors on a machine you can spare, with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    ggufs = sorted(path.name for path in folder.iterdir() if path.suffix == ".gguf")
    if ggufs:
        return CheckpointError(f"{folder} has no safetensors; to use its GGUF give the file: {folder / ggufs[0]}")
    return CheckpointError(f"{folder} has no weights; expected {SINGLE}, or {INDEX} and its shards")


def read_card(folder: Path) -> str:
    """Text of README.md, "" where there is none. Raises CheckpointError when it is too long or no text."""
    return read_text(folder / CARD, most=_MAX_CARD) if (folder / CARD).is_file() else ""


def _notices(folder: Path, model_card: str) -> tuple[str, str, str]:
    """(licence id, licence text, citation) from the model card, LICENSE* and CITATION*."""
    text = "".join(
        read_text(folder / file) for file in ("LICENSE", "LICENSE.txt", "LICENSE.md") if (folder / file).is_file()
    )
    identifier = notices.license_of_readme(model_card)
    if identifier == "unknown":
        identifier = notices.license_of_text(text)
    for file in ("CITATION.bib", "CITATION.cff", "CITATION"):
        if (folder / file).is_file():
            return identifier, text, read_text(folder / file)
    return identifier, text, notices.citation_of_readme(model_card)
