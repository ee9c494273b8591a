"""Every error that hermes-deploy raises on purpose. Standard library only.

    HermesDeployError                 what the command line prints as one clear message
    ├── UsageError                    a flag, name or value that is not allowed
    │   ├── RecipeError               unknown recipe, unknown key in a recipe
    │   └── TargetError               unknown target, or one that cannot be had here
    ├── CheckpointError               the model that came in cannot be read or is not supported
    ├── BuildError                    a stage of the build failed
    │   ├── GraphError
    │   ├── QuantizationError
    │   ├── EngineError               TensorRT refused, or a network input is not consumed
    │   └── GateError                 the result does not answer like the reference
    ├── ArtifactError                 a built repository that does not verify
    ├── ServeError                    the server cannot start, or died
    ├── RequestError                  one request is wrong (prompt too long, bad value)
    └── client.ClientError            see hermes_deploy.client

A message says what was found, what is allowed, and what to run.
"""

from __future__ import annotations


class HermesDeployError(Exception):
    """Root of the tree. `str(error)` is meant for a person; `exit_code` for a shell."""

    exit_code = 1


class UsageError(HermesDeployError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class TargetError(UsageError):
    pass


class CheckpointError(HermesDeployError):
    exit_code = 3


class BuildError(HermesDeployError):
    exit_code = 4


class GraphError(BuildError):
    pass


class QuantizationError(BuildError):
    pass


class EngineError(BuildError):
    pass


class GateError(BuildError):
    exit_code = 5


class ArtifactError(HermesDeployError):
    exit_code = 6


class ServeError(HermesDeployError):
    exit_code = 7


class RequestError(HermesDeployError):
    """One request is wrong. `code` is the gRPC status name that the caller gets."""

    exit_code = 8

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.code = code
