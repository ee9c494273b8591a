"""Licence and citation that a checkpoint brings along, for the artifact's notice. Pure text in, text out."""

from __future__ import annotations

import re

_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
}
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_FIELD = re.compile(r"^(license|license_name):[ \t]*[\"']?([^\"'\r\n#]+)", re.MULTILINE)


def license_id(word: str) -> str:
    """SPDX id of the hub's word for a licence; a word that is not known stays as it is."""
    return _SPDX.get(word.strip().lower(), word.strip() or "unknown")


def license_of_readme(readme: str) -> str:
    """The licence that a model card's YAML front matter names; "unknown" when it says nothing."""
    front = _FRONT_MATTER.match(readme)
    found: dict[str, str] = dict(_FIELD.findall(front.group(1))) if front else {}
    word = found.get("license", "unknown")
    # "other" stands for a licence that is named in the next field.
    return license_id(found.get("license_name", word) if word.strip() == "other" else word)


def license_of_text(text: str) -> str:
    """SPDX id of the commonest licence texts; "unknown" for any other."""
    start = text[:400]
    if "Apache License" in start and "Version 2.0" in start:
        return "Apache-2.0"
    if "MIT License" in start:
        return "MIT"
    return "unknown"


def citation_of_readme(readme: str) -> str:
    """The BibTeX entries of a model card, verbatim; "" when there are none."""
    blocks = re.findall(r"```(?:bibtex|latex|bib)?[ \t]*\r?\n(@.*?)\r?\n```", readme, re.DOTALL)
    return "\n\n".join(blocks)
