"""Which Python distributions a build had at hand, from the metadata that pip left beside them.

Takes names, gives these and everything that they require and that is installed. Imports none of
them, and asks the metadata rather than what happens to be imported: the same environment gives the
same list, whichever program asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LONGEST_LICENSE = 100
"""Characters. Some metadata carries the whole text of the licence where its name belongs."""

_CLASSIFIER = "License :: "


@dataclass(frozen=True)
class Distribution:
    """`name` as PyPI spells it in addresses (lower case, hyphens).

    `license_expression`: SPDX, "" where the metadata has none; then `license_name` is what it says in
    words ("" when it says nothing). `requires`: names of the installed ones that it needs, sorted.
    """

    name: str
    version: str
    license_expression: str
    license_name: str
    requires: tuple[str, ...]


def installed_distributions(names: Iterable[str]) -> tuple[Distribution, ...]:
    """Those of `names` that are installed and, without optional extras, all that they require; sorted."""
    found: dict[str, Distribution] = {}
    asked: dict[str, set[str]] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = asked.setdefault(name, set())
        if name in found and wanted.extras <= extras:
            continue
        extras |= wanted.extras
        try:
            about = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # one of two that do the same (onnxruntime, onnxruntime-gpu), or an optional one
        needed = _needed(about.requires or [], extras)
        waiting += needed
        found[name] = _describe(name, about, needed)
    installed = set(found)
    return tuple(
        Distribution(
            each.name,
            each.version,
            each.license_expression,
            each.license_name,
            tuple(sorted(installed & set(each.requires))),
        )
        for _, each in sorted(found.items())
    )


def _needed(lines: Iterable[str], extras: set[str]) -> list[Requirement]:
    """The requirements that hold on this machine with these extras."""
    requirements = [Requirement(line) for line in lines]
    return [
        each
        for each in requirements
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def _describe(name: str, about: metadata.Distribution, needed: Iterable[Requirement]) -> Distribution:
    expression = _field(about, "License-Expression")
    return Distribution(
        name=name,
        version=about.version,
        license_expression=expression,
        license_name="" if expression else _license_name(about),
        requires=tuple(canonicalize_name(each.name) for each in needed),
    )


def _license_name(about: metadata.Distribution) -> str:
    """The licence in the words of the metadata: its field where that is a name, else its classifiers."""
    field = _field(about, "License")
    if field and "\n" not in field and len(field) <= _LONGEST_LICENSE:
        return field
    classifiers = about.metadata.get_all("Classifier") or []
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith(_CLASSIFIER)]
    return ", ".join(sorted(names))


def _field(about: metadata.Distribution, name: str) -> str:
    return str((about.metadata.get_all(name) or [""])[0]).strip()
