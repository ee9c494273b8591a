"""ONNX in the portable dialect -> TensorRT plan + sidecar, in a process of its own.

    check_available(targets, recipe)   refuses before any work what cannot be had on this machine
    build_engine(onnx, targets, out)   one plan for several GPUs, proved kernel by kernel
    read_sidecar(folder)               what the plan takes and gives, without a GPU

Importing this package loads no TensorRT.
"""

from hermes_deploy.engines.availability import Availability, EngineGroup, check_available, flavour_for
from hermes_deploy.engines.build import EngineFiles, EngineProgress, build_engine
from hermes_deploy.engines.profiles import Profile, Range, serving_profiles
from hermes_deploy.engines.sidecar import PLAN, SIDECAR, EngineSidecar, read_sidecar, write_sidecar

__all__ = [
    "PLAN",
    "SIDECAR",
    "Availability",
    "EngineFiles",
    "EngineGroup",
    "EngineProgress",
    "EngineSidecar",
    "Profile",
    "Range",
    "build_engine",
    "check_available",
    "flavour_for",
    "read_sidecar",
    "serving_profiles",
    "write_sidecar",
]
