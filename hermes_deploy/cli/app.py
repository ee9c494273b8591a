"""The list of verbs."""

from __future__ import annotations

import typer

from hermes_deploy import __version__
from hermes_deploy.cli.ask import ask
from hermes_deploy.cli.bench import bench
from hermes_deploy.cli.build import build
from hermes_deploy.cli.cache import cache
from hermes_deploy.cli.doctor import doctor
from hermes_deploy.cli.inspect import inspect
from hermes_deploy.cli.serve import serve
from hermes_deploy.cli.validate import validate

app = typer.Typer(
    name="hermes-deploy",
    help=(
        "Takes a Mistral-family chat checkpoint to a verified, streaming endpoint on Triton.\n\n"
        "First time: hermes-deploy doctor; hermes-deploy build smollm2 --output demo; "
        "hermes-deploy serve demo; then, elsewhere: hermes-deploy ask 'Hello!'"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hermes-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for verb in (build, serve, ask, bench, inspect, validate, doctor):
    app.command()(verb)
app.add_typer(cache)
