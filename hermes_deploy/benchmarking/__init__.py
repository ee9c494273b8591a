"""How fast an artifact answers and what it holds in memory, measured as its callers feel it.

    report = bench(artifact, Options(streams=(1, 8)), tell)     # in this process and through both doors
    report.document()                                           # JSON values
    throughput_plot(report)                                     # an SVG picture

`scripts/bench/token_loop.py` puts the same measures, and those that no user of an artifact asks for, against
what the token loop must reach.
"""

from hermes_deploy.benchmarking.options import Options, Sizes
from hermes_deploy.benchmarking.plot import throughput_plot
from hermes_deploy.benchmarking.report import Limit, Report, Row, What
from hermes_deploy.benchmarking.run import Progress, bench, open_artifact

__all__ = [
    "Limit",
    "Options",
    "Progress",
    "Report",
    "Row",
    "Sizes",
    "What",
    "bench",
    "open_artifact",
    "throughput_plot",
]
