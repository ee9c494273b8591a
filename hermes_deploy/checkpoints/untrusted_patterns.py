"""Regular expressions that a file brings along, matched in a process of their own under a time limit.

An expression can take longer than anyone waits, and Python cannot interrupt one that runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from hermes_deploy.errors import CheckpointError

_SECONDS = 20.0
_MOST_PATTERNS = 1 << 13
_LONGEST_PATTERN = 1 << 14
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
found = []
for pattern in patterns:
    try:
        match = re.compile(pattern).fullmatch
    except (re.error, OverflowError, RecursionError) as error:
        json.dump({"pattern": pattern, "error": str(error)}, sys.stdout)
        sys.exit()
    found.append([name for name in names if match(name)])
json.dump(found, sys.stdout)
"""


def matched_names(patterns: Sequence[str], names: Sequence[str], where: str) -> list[list[str]]:
    """For each pattern the names that it matches as a whole. `where` names the file in messages.

    Raises CheckpointError for what is no regular expression, for too many, and when the time runs out.
    """
    if not patterns:
        return []
    if len(patterns) > _MOST_PATTERNS or max(map(len, patterns)) > _LONGEST_PATTERN:
        raise CheckpointError(
            f"{where} holds {len(patterns)} patterns of up to {max(map(len, patterns))} characters; "
            f"at most {_MOST_PATTERNS} of {_LONGEST_PATTERN} are matched"
        )
    try:
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=json.dumps([patterns, names]),
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{where}: its regular expressions take longer than {_SECONDS:g} s to match; write the modules' names out"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise CheckpointError(f"{where}: its regular expressions could not be matched: {error}") from None
    found: list[list[str]] | dict[str, str] = json.loads(result.stdout)
    if isinstance(found, dict):
        raise CheckpointError(f"{where}: {found['pattern']!r} is not a regular expression: {found['error']}")
    return found
