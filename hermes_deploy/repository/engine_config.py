"""engine_config.json: what `hermes_engine` reads when it starts. Lies in hermes_engine/1/.

Written by the build, read inside Triton's Python stub. Pydantic at the border: an unknown key or
a wrong type is an ArtifactError.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hermes_deploy.errors import ArtifactError
from hermes_deploy.families import FAMILIES

ENGINE_CONFIG = "engine_config.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingDefaults(_Frozen):
    """What a request gets that does not say. Bounds as in protocol/tensors.py.

    An artifact of before there were some of them has them off.
    """

    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    typical_p: float = Field(default=1.0, gt=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)


class EngineTarget(_Frozen):
    """One target's engine. `model` is the file that is opened, `files` all that belong to it.

    Paths are relative to hermes_engine/1, with forward slashes.
    """

    name: str
    engine: Literal["onnxruntime", "tensorrt"]
    precision: str
    model: str
    files: tuple[str, ...]

    @field_validator("model", "files")
    @classmethod
    def _stays_inside(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name != str(path):
                raise ValueError(f"{name!r} is not a plain relative path")
        return value

    @model_validator(mode="after")
    def _model_is_listed(self) -> EngineTarget:
        if self.model not in self.files:
            raise ValueError(f"model {self.model!r} is not one of its files")
        return self


class EngineConfig(_Frozen):
    """`max_context` tokens and `max_slots` chats that the engines were built for; serving may lower both.

    `stop_ids`: generating one of these tokens ends the answer.
    """

    schema_version: Literal[1] = 1
    model: str
    family: str
    targets: tuple[EngineTarget, ...] = Field(min_length=1)
    max_context: int = Field(ge=2)
    max_slots: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    stop_ids: tuple[int, ...]
    sampling: SamplingDefaults

    @property
    def default_target(self) -> str:
        """The target that config.pbtxt names when nobody chose: the first that was built."""
        return self.targets[0].name

    def target(self, name: str) -> EngineTarget:
        """Raises ArtifactError that lists what the artifact holds."""
        for target in self.targets:
            if target.name == name:
                return target
        names = ", ".join(target.name for target in self.targets)
        raise ArtifactError(f"this artifact has no engine for target {name!r}; it has: {names}")


def sampling_defaults(generation: Mapping[str, float], family: str) -> SamplingDefaults:
    """From the checkpoint's generation_config; what it does not say comes from its family.

    `generation`: keys of Checkpoint.generation. A checkpoint that says greedy (do_sample = false is temperature 0)
    is greedy: nothing of its family's is added.
    """
    if generation.get("temperature") == 0:
        return SamplingDefaults.model_validate({"temperature": 0.0, **generation})
    record = FAMILIES[family]
    published = {key: getattr(record, key) for key in SamplingDefaults.model_fields if key != "max_tokens"}
    return SamplingDefaults.model_validate({**published, **generation})


def write_engine_config(folder: Path, config: EngineConfig) -> None:
    """Writes engine_config.json into `folder` (hermes_engine/1)."""
    (folder / ENGINE_CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_engine_config(folder: Path) -> EngineConfig:
    """Reads it from `folder` (hermes_engine/1). Raises ArtifactError when it is absent or damaged."""
    path = folder / ENGINE_CONFIG
    try:
        return EngineConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}. Build the artifact again.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{path} is damaged: {where}: {first['msg']}. Build the artifact again.") from None
