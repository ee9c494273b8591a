"""One engine, built: parse, check, compile, stream to disk, prove. Runs in the build process only.

One code path for `tensorrt_rtx` and `tensorrt`: the module is chosen once and passed down. Every
failure is an EngineError with TensorRT's own first words.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from hermes_deploy.engines.layers import Linear, fused_attention, gemms, read_record
from hermes_deploy.engines.logger import Heard, make_logger
from hermes_deploy.engines.network import NetworkFacts, read_network
from hermes_deploy.engines.plan_file import PlanFile
from hermes_deploy.engines.profiles import Profile, Range
from hermes_deploy.engines.request import BuildRequest
from hermes_deploy.engines.sidecar import EngineSidecar, LayerSummary, PlanEntry, ProfileEntry
from hermes_deploy.errors import EngineError
from hermes_deploy.targets import target

Report = Callable[[str, int, int], None]
"""phase, step, steps."""


def compile_engine(request: BuildRequest, plan: BufferedWriter, report: Report) -> EngineSidecar:
    """Writes the plan into `plan`; gives the sidecar that belongs to it. Raises EngineError."""
    trt = importlib.import_module(request.flavour)
    heard = Heard()
    logger = make_logger(trt, heard)
    builder = trt.Builder(logger)
    report("parse", 0, 1)
    network, parser = _parse(trt, builder, logger, heard, Path(request.onnx))
    facts = read_network(network, _output_names(Path(request.onnx)))
    check_consumed(facts, heard)
    check_promise(facts, request)
    report("parse", 1, 1)

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = _make_monitor(trt, report)
    _set_targets(trt, config, request)
    for wanted in request.profiles:
        _add_profile(builder, config, facts, wanted)

    with PlanFile(plan) as written:
        writer = _make_writer(trt, written)
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if written.error is not None:
        raise EngineError(
            f"the engine could not be written: {written.error.strerror}. Free some space and build again."
        )
    if not built:
        raise EngineError(f"{request.flavour} could not build the engine: {heard.first_error()}")
    layers = prove(facts, heard.record, len(request.profiles))
    # TensorRT holds raw pointers to these until here
    del parser, monitor, writer
    return EngineSidecar(
        flavour=request.flavour,
        version=trt.__version__,
        targets=request.targets,
        compute_capabilities=[_dotted(name) for name in request.targets],
        precision=request.precision,
        head_precision=request.head_precision,
        kept=request.kept,
        inputs=list(facts.inputs),
        outputs=list(facts.outputs),
        aliases=facts.aliases,
        profiles=request.profiles,
        layers=layers,
        plan=PlanEntry(sha256=written.sha256, size=written.size),
    )


def _parse(trt: Any, builder: Any, logger: Any, heard: Heard, path: Path) -> tuple[Any, Any]:
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    # by path and not by bytes: weights in external data are found beside the file
    if not parser.parse_from_file(str(path)) or parser.num_errors:
        if not parser.num_errors:
            raise EngineError(f"{trt.__name__} cannot parse {path}: {heard.first_error()}")
        error = parser.get_error(0)
        node = f" at node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else ""
        # what was logged before is the cause, such as the file that could not be opened
        cause = heard.first_error()
        before = "" if error.desc() in cause else f"{cause}. "
        raise EngineError(f"{trt.__name__} cannot parse {path}{node}: {before}{error.desc()}")
    return network, parser


def _output_names(path: Path) -> dict[str, list[int | str]]:
    try:
        outputs = onnx.load(path, load_external_data=False).graph.output
    except DecodeError as error:
        # TensorRT's parser takes some garbage for an empty graph
        raise EngineError(f"{path} is not an ONNX graph: {error}") from None
    return {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in outputs}


def check_consumed(facts: NetworkFacts, heard: Heard) -> None:
    """Raises EngineError when an input has no way to any output: its effect would silently be missing."""
    warned = {w for i in facts.inputs for w in heard.warnings if "unused" in w.lower() and i.name in w.split()}
    if facts.unconsumed or warned:
        names = ", ".join(facts.unconsumed) or "; ".join(sorted(warned))
        raise EngineError(
            f"network input not consumed: {names}. TensorRT's parser dropped what reads it (it does so with "
            "Attention's nonpad_kv_seqlen) or the graph never used it; the engine would answer without it."
        )


def check_promise(facts: NetworkFacts, request: BuildRequest) -> None:
    """Raises EngineError when the graph does not hold its matrices in the recipe's precisions."""
    if not facts.linears:
        raise EngineError("the graph multiplies with no constant matrix; it is not a decoder with its weights in it")
    body = [n for n in facts.linears if n is not facts.head]
    kept = _kept(body, request)
    wrong = [n for n in body if n not in kept and n.form != request.precision]
    if wrong:
        raise EngineError(
            f"the recipe promises {request.precision} linears, but {len(wrong)} of {len(facts.linears)} are "
            f"{wrong[0].form} in the graph, the first at {wrong[0].node}"
        )
    if facts.head is not None and facts.head.form != request.head_precision:
        raise EngineError(
            f"the recipe promises an {request.head_precision} head, but it is {facts.head.form} in the graph"
        )
    unscaled = [n for n in facts.linears if n.form in ("int8", "fp8") and n.scales != 1]
    if unscaled:
        raise EngineError(
            f"{unscaled[0].node} dequantizes its {unscaled[0].dtype} weight with {unscaled[0].scales} scales: "
            "TensorRT writes the sums of such a GEMM unscaled in fp16, where they overflow, and scales them "
            "afterwards. One scale before the product and a Mul over the columns after it give the same numbers "
            "(docs/tensorrt.md)."
        )


def _kept(body: list[Linear], request: BuildRequest) -> list[Linear]:
    """The linears that the request keeps. Raises EngineError unless they are there, few, and as it says."""
    dtype = target(request.targets[0]).activation
    found = {name: [n for n in body if n.node == f"[ONNX Layer: {name}]"] for name in request.kept}
    for name, linears in found.items():
        if len(linears) != 1 or linears[0].form != dtype:
            what = linears[0].form if linears else "not in the graph"
            raise EngineError(f"linear {name} was to be kept in {dtype}, but it is {what}")
    if request.kept and 2 * len(request.kept) >= len(body):
        raise EngineError(
            f"{len(request.kept)} of {len(body)} linears are kept in {dtype}: that is no {request.precision} engine"
        )
    return [linears[0] for linears in found.values()]


def prove(facts: NetworkFacts, record: str, profiles: int) -> LayerSummary:
    """The layer record, counted. Raises EngineError when a quantized linear has no kernel of its precision."""
    kernels = read_record(record)
    if not kernels:
        raise EngineError("TensorRT wrote no layer record, so the precision of its kernels cannot be proved")
    found = {n: len(gemms(kernels, n)) for n in facts.linears}
    quantized = [n for n in found if n.scales]
    lost = [n for n in quantized if found[n] < profiles]
    if lost:
        raise EngineError(
            f"{len(lost)} of {len(quantized)} quantized linears did not become "
            f"{lost[0].form} kernels: TensorRT widens their weights first, and the engine would be slow and large "
            f"without saying so. The first is {lost[0].node}. A weight's scale must be in the activation's dtype, "
            "symmetric, without a Cast behind it (docs/tensorrt.md)."
        )
    counted: Counter[str] = Counter()
    for n, count in found.items():
        counted[n.form] += count
    return LayerSummary(
        linears=dict(sorted(Counter(n.form for n in found).items())),
        gemms=dict(sorted(counted.items())),
        attentions=facts.attentions,
        fused_attention=fused_attention(kernels),
        kernels=len(kernels),
    )


def _set_targets(trt: Any, config: Any, request: BuildRequest) -> None:
    # full TensorRT builds for the GPU of this machine and nothing else
    if request.flavour == "tensorrt":
        return
    capabilities = [target(name).compute_capability or (0, 0) for name in request.targets]
    config.num_compute_capabilities = len(capabilities)
    for i, (major, minor) in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), i)


def _dotted(name: str) -> str:
    return ".".join(str(n) for n in target(name).compute_capability or ())


def _add_profile(builder: Any, config: Any, facts: NetworkFacts, wanted: ProfileEntry) -> None:
    ranges = {name: Range(size.min, size.opt, size.max) for name, size in wanted.dimensions.items()}
    profile = builder.create_optimization_profile()
    for entry in facts.inputs:
        profile.set_shape(entry.name, *Profile(wanted.name, ranges).shapes(entry.name, entry.shape))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the optimization profile {wanted.name!r}")


def _make_writer(trt: Any, plan: PlanFile) -> Any:
    class PlanWriter(trt.IStreamWriter):  # type: ignore[misc] # trt is chosen at run time
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return len(data) if plan.take(data) else 0

    return PlanWriter()


def _make_monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # trt is chosen at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            # deeper phases number in the hundreds and last microseconds
            if parent is None or parent.startswith("Building engine"):
                self.steps[phase] = steps
                report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                report(phase, min(step + 1, self.steps[phase]), self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 0)
            if steps:
                report(phase, steps, steps)

    return Monitor()
