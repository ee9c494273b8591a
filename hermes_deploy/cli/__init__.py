"""The `hermes-deploy` command: one file a verb, no logic.

`main` registers the verbs and turns every HermesDeployError into one message on stderr (and, with
`--json`, one JSON document on stdout) and its exit code. Verbs import their rooms when they run,
so that `--help` is instant and a slim installation can still use the verbs it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from hermes_deploy.errors import HermesDeployError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0, the error's own code, 2 for a usage error, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        import typer  # noqa: F401

        code = _run(arguments)
    except ModuleNotFoundError:
        sys.exit("hermes-deploy: the command line is not installed; run: pip install 'hermes-deploy[cli]'")
    except KeyboardInterrupt:  # before the verb began: the imports take a moment
        code = _fail(arguments, "Interrupted", "interrupted", 130)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    from typer.exceptions import Abort, Exit, TyperException

    from hermes_deploy.cli.app import app

    # a service manager stops us with SIGTERM: unwind as for Ctrl-C, so that nothing half-made is left
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = app(arguments, prog_name="hermes-deploy", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        code = result if isinstance(result, int) else 0
        # typer catches Ctrl-C itself, without a word, and gives 130
        return _fail(arguments, "Interrupted", "interrupted", 130) if code == 130 else code
    except Exit as stop:
        return stop.exit_code
    except HermesDeployError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_code)
    except TyperException as error:
        return _fail(arguments, "UsageError", _usage_message(error), 2)
    except (Abort, KeyboardInterrupt):
        return _fail(arguments, "Interrupted", "interrupted", 130)
    except BrokenPipeError:
        _drop_output()  # the reader of it went away (| head): no message
        return 141
    except OSError as error:
        # the machine's own no: a full disk, an output that is closed, a folder that may not be read
        where = f"{error.filename}: " if error.filename is not None else ""
        code = _fail(arguments, type(error).__name__, f"{where}{error.strerror or error}", 1)
        _drop_output()
        return code
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed, and this verb needs it. Run: hermes-deploy doctor"
        return _fail(arguments, "MissingPackage", message, 1)


def _drop_output() -> None:
    """What is still unwritten is dropped: Python would complain a second time at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _usage_message(error: Any) -> str:
    """The parser's message, with the valid options where an unknown one was given."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if hasattr(error, "option_name") and message.startswith("No such option") and context is not None:
        options = sorted(o for p in context.command.params for o in p.opts if o.startswith("--"))
        message = f"No such option: {error.option_name}. Options are: {', '.join([*options, '--help'])}"
    if message.startswith("No such command") and context is not None:
        message += f" Verbs are: {', '.join(context.command.commands)}"
    if context is not None:
        message += f"\nHelp: {context.command_path} --help"
    return str(message)


def _fail(arguments: list[str], kind: str, message: str, code: int) -> int:
    if "--json" in arguments:
        document = json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}}, ensure_ascii=False)
        with contextlib.suppress(OSError):  # where it cannot be written is what the message says
            print(document, flush=True)
    with contextlib.suppress(OSError):  # the exit code is still there to say it
        print(f"error: {message}", file=sys.stderr)
    return code
