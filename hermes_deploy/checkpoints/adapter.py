"""A PEFT LoRA folder on top of a `Checkpoint` -> the `Checkpoint` of the merged model. Nothing is loaded here.

What comes out computes what peft computes with the adapter attached. Over a tied head that means: a LoRA of
the embedding or of the head unties the two, because training changed only one of them. (peft's own
merge_and_unload adds the change to both and so gives another model than the one that was trained.)
A tokenizer in the adapter's folder takes the place of the model's: it is the one that was trained with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hermes_deploy.checkpoints import chat_settings, notices
from hermes_deploy.checkpoints.adapter_config import LoraConfig, parse_adapter_config
from hermes_deploy.checkpoints.adapter_targets import EMBEDDING_MODULE, HEAD_MODULE
from hermes_deploy.checkpoints.adapter_tensors import Changes, read_changes
from hermes_deploy.checkpoints.checkpoint import AdapterFacts, Checkpoint, LazyTensor, TokenizerFiles
from hermes_deploy.checkpoints.fingerprint import sha256_files
from hermes_deploy.checkpoints.folder import read_card
from hermes_deploy.checkpoints.folder_tokenizer import FILES as TOKENIZER_FILES
from hermes_deploy.checkpoints.folder_tokenizer import read_folder_tokenizer, read_json
from hermes_deploy.checkpoints.layout import EMBEDDING, HEAD
from hermes_deploy.checkpoints.safetensors_file import read_safetensors
from hermes_deploy.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """See `hermes_deploy.checkpoints.apply_adapter`."""
    if checkpoint.adapter is not None:
        raise CheckpointError(
            f"{checkpoint.name} already has the adapter {checkpoint.adapter.name}; only one adapter is merged"
        )
    _check_folder(folder)
    config = parse_adapter_config(read_json(folder / CONFIG), str(folder / CONFIG))
    tied, where = checkpoint.config.tied_head, str(folder / WEIGHTS)
    tensors = dict(checkpoint.tensors)
    if tied:
        tensors[HEAD] = replace(tensors[EMBEDDING], name=HEAD)
    weights = {_module(name): tensor.shape for name, tensor in tensors.items()}
    changes = read_changes(read_safetensors(folder / WEIGHTS), config, weights, tied=tied, where=where)
    tensors |= _changed(tensors, changes, tied=tied, where=where)
    changed = {*changes.lora, *changes.base, *changes.saved}
    tied_head = tied and _still_tied(changes)
    if tied_head:
        del tensors[HEAD]
        changed.discard(HEAD_MODULE)
    facts = _facts(folder, config, changed, checkpoint)
    tokenizer, family = _tokenizer(checkpoint, folder)
    note = f"{checkpoint.weights_note}; " if checkpoint.weights_note else ""
    return replace(
        checkpoint,
        name=f"{checkpoint.name}+{facts.name}",
        sha256=hashlib.sha256(f"{checkpoint.sha256}  base\n{facts.sha256}  adapter\n".encode()).hexdigest(),
        family=family,
        config=replace(checkpoint.config, tied_head=tied_head),
        tensors=tensors,
        tokenizer=tokenizer,
        weights_note=f"{note}LoRA adapter {facts.name} merged into {facts.merged_tensors} tensors in float32",
        adapter=facts,
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        hint = f"; the folder {folder / inside[0]} has one" if inside else ""
        raise CheckpointError(f"{folder} has no {CONFIG}; expected a folder that peft's save_pretrained wrote{hint}")
    if (folder / WEIGHTS).is_file():
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickles[0]}); a pickle runs code when it is opened, so it is never "
            "read. Load the adapter with peft on a machine you can spare, and save_pretrained writes safetensors."
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS}. Get the adapter again.")


def _changed(tensors: Mapping[str, LazyTensor], changes: Changes, *, tied: bool, where: str) -> dict[str, LazyTensor]:
    """Name -> new tensor, of those that differ from the model's own."""
    base = dict(changes.base)
    if tied and base:
        # below a tied head lies one weight; peft saves it under both names or under one of them
        own = base.get(EMBEDDING_MODULE, base.get(HEAD_MODULE))
        assert own is not None
        if len(base) == 2 and not _equal(base[EMBEDDING_MODULE], base[HEAD_MODULE]):
            raise CheckpointError(f"{where}: the head is tied to the embedding, yet the two saved weights differ")
        base = {EMBEDDING_MODULE: own, HEAD_MODULE: own}
    result = {_name(module): _renamed(tensor, module) for module, tensor in {**base, **changes.saved}.items()}
    for module, lora in changes.lora.items():
        name = _name(module)
        result[name] = lora.merge_into(result.get(name, tensors[name]), where)
    return result


def _still_tied(changes: Changes) -> bool:
    both = {EMBEDDING_MODULE, HEAD_MODULE}
    if both & changes.lora.keys():
        return False
    saved = both & changes.saved.keys()
    return not saved or (saved == both and _equal(changes.saved[EMBEDDING_MODULE], changes.saved[HEAD_MODULE]))


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    return bool(np.array_equal(one.load(), other.load()))


def _facts(folder: Path, config: LoraConfig, changed: Collection[str], base: Checkpoint) -> AdapterFacts:
    """`changed`: modules that the adapter's file names."""
    used = [name for name in (CONFIG, WEIGHTS, *TOKENIZER_FILES) if (folder / name).is_file()]
    return AdapterFacts(
        name=_folder_name(folder),
        sha256=sha256_files((name, folder / name) for name in used),
        base_model=config.base_model_name_or_path or "",
        rank=config.r,
        alpha=config.lora_alpha,
        modules=tuple(sorted({name.rpartition(".")[2] for name in changed})),
        merged_tensors=len(changed),
        merged_into=base.name,
        merged_into_sha256=base.sha256,
        license_id=notices.license_of_readme(read_card(folder)),
    )


def _folder_name(folder: Path) -> str:
    name = folder.resolve().name
    try:
        name.encode()  # it stands in UTF-8 files
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of {str(folder)!a} is not UTF-8 text; rename it") from None
    return name


def _tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[TokenizerFiles, str]:
    """The adapter's own tokenizer with its template and stops, each taken from the model where it brings none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return checkpoint.tokenizer, checkpoint.family
    own, base = read_folder_tokenizer(folder), checkpoint.tokenizer
    family, files = chat_settings.tokenizer_files(
        own.tokenizer_json,
        template=own.template or base.chat_template,
        bos_token=own.bos_token or base.bos_token,
        eos_token=own.eos_token or base.eos_token,
        eos_ids=base.stop_ids,
        vocab_size=checkpoint.config.vocab_size,
        where=str(folder),
    )
    return files, family


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _name(module: str) -> str:
    return f"{module}.weight"


def _renamed(tensor: LazyTensor, module: str) -> LazyTensor:
    return replace(tensor, name=_name(module))
