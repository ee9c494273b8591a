"""Writes smollm2_golden.json: ids that llama.cpp gives to each text of the corpus. Run by hand, rarely.

    python -m venv /tmp/golden && /tmp/golden/bin/pip install xllamacpp
    /tmp/golden/bin/python -m tests.chat.make_smollm2_golden PATH/SmolLM2-135M-Instruct.Q4_1.gguf

llama.cpp is the reference implementation of a GGUF's tokenizer; its prebuilt wheel is too heavy to
be fetched by every test run, and ids of a pinned file never change.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from tests.chat.corpus import CORPUS


def main(gguf: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_ctx = 512
    parameters.n_parallel = 1
    server = xllamacpp.Server(parameters)
    golden = {text: _ids(server.listening_address, text) for text in CORPUS}
    record = {"reference": f"xllamacpp {xllamacpp.__version__}", "ids": golden}
    path = Path(__file__).with_name("smollm2_golden.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="ascii")
    print(f"{len(golden)} texts")


def _ids(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
    return tokens


if __name__ == "__main__":
    main(sys.argv[1])
