"""Fuzz one target in this process: `python -m tests.fuzz.run TARGET`, and flags and folders for libFuzzer."""

from __future__ import annotations

import importlib
import logging
import sys

import atheris

from .mutator import mutate

STRUCTURED = {"packets", "reports", "session"}
"""Targets whose inputs hold JSON objects or maps of MessagePack."""


def main() -> None:
    """Fuzz until libFuzzer ends this process."""
    name = sys.argv[1]
    # Otherwise each input that is refused would be a line.
    logging.disable()
    with atheris.instrument_imports(include=["wsqueue"]):
        target = importlib.import_module(f"tests.fuzz.targets.{name}")
    mutator = {"custom_mutator": mutate} if name in STRUCTURED else {}
    atheris.Setup([f"fuzz {name}", *sys.argv[2:]], target.check, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
