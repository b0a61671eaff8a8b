"""Fuzz targets, one after another: `python -m tests.fuzz --help`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from tests.support.paths import ROOT

from .targets import CORPUS, NAMES, module

INPUT_SECONDS = 5
"""Longest time for one input, on a busy machine: they take milliseconds."""

MEMORY_MIB = 512
"""Most memory of the fuzzer: it begins with 100 MiB."""

INPUT_BYTES = 4096
"""Longest input, unless a target makes more of it."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("targets", nargs=-1, type=click.Choice(NAMES))
@click.option("--seconds", type=click.IntRange(1), default=600, help="How long to fuzz each.")
@click.option("--seed", type=click.IntRange(1), help="Seed of the fuzzer's chance.  [default: by chance]")
@click.option(
    "--failures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to keep inputs that fail.  [default: the corpus, so that they become tests]",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / ".fuzz",
    help="Where to keep inputs that led somewhere new, for the next run.",
)
def main(
    *, targets: Sequence[str], seconds: int, seed: int | None, failures: Path | None, work: Path
) -> None:
    """Fuzz targets, all if none is named, and exit with 1 when an input has failed."""
    if importlib.util.find_spec("atheris") is None:
        raise click.ClickException("atheris is not installed; it has packages for Linux on x86-64 only")
    failed = [
        name
        for name in targets or NAMES
        if not fuzz(name, seconds, seed, failures or CORPUS / name, work / name)
    ]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def fuzz(name: str, seconds: int, seed: int | None, failures: Path, work: Path) -> bool:
    """Fuzz a target, and return True if nothing failed."""
    click.echo(f"Fuzzing {name} for {seconds} seconds.", err=True)
    for folder in (work, failures, CORPUS / name):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wsqueue-fuzz-") as place:
        words, seeds = Path(place, "words"), Path(place, "seeds")
        words.write_text("".join(f'"{quoted(word)}"\n' for word in module(name).WORDS))
        seeds.mkdir()
        for number, data in enumerate(module(name).seeds()):
            (seeds / f"{number}").write_bytes(data)
        command = [
            *(sys.executable, "-m", "tests.fuzz.run", name),
            *(f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"),
            *(
                f"-max_len={INPUT_BYTES}",
                f"-dict={words}",
                f"-artifact_prefix={failures}/",
                "-keep_seed=1",
            ),
            *([f"-seed={seed}"] if seed else []),
            *map(str, (work, CORPUS / name, seeds)),
        ]
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def quoted(word: bytes) -> str:
    """Return a word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
