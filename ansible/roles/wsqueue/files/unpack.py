"""Unpack a zipapp as a release, and remove the zipapp. The role runs this on the host.

unpack.py ZIPAPP SHA256 RELEASE: RELEASE is the directory of the release. The release gets this name after it
has been seen to work, so that a half-unpacked one is never used. If anything fails, RELEASE stays as it was,
and the last line on standard error says why.
"""

import compileall
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

zipapp, release = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
expected = sys.argv[2]
part, damaged = pathlib.Path(f"{release}.part"), pathlib.Path(f"{release}.damaged.part")

DIRECTORY_MODE, FILE_MODE = 0o555, 0o444
"""All users read a release, and nobody writes to it."""


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_rest() -> None:
    """Remove everything but the release that this run, or one that broke off, has left."""
    for directory in (part, damaged):
        shutil.rmtree(directory, ignore_errors=True)


def unpack() -> None:
    """Unpack the zipapp under the other name."""
    with zipfile.ZipFile(zipapp) as archive:
        archive.extractall(part)
    # Here, because the services may not write there.
    packages = part / "site-packages"
    if not compileall.compile_dir(packages, quiet=1, stripdir=part, prependdir=release):
        sys.exit("it cannot be compiled")
    # So that a later run finds damage.
    files = sorted(path for path in part.rglob("*") if path.is_file())
    sums = [f"{sha256(file)}  ./{file.relative_to(part)}\n" for file in files]
    (part / "SHA256SUMS").write_text("".join(sums))
    for path in (part, *part.rglob("*")):
        path.chmod(DIRECTORY_MODE if path.is_dir() else FILE_MODE)


def try_it() -> None:
    """End unless the release under the other name works on this host."""
    tried = subprocess.run(
        [sys.executable, "-m", "wsqueue", "--version"],
        check=False,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(part / "site-packages")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if tried.returncode:
        sys.exit(tried.stderr.strip() or "no output")


remove_rest()
try:
    # It may have changed since the preflight read it.
    found = sha256(zipapp)
    if found != expected:
        sys.exit(f"it has the SHA-256 {found}, and the file that was checked had {expected}")
    unpack()
    try_it()
    if release.exists():
        release.rename(damaged)
    part.rename(release)
finally:
    remove_rest()
    zipapp.unlink(missing_ok=True)
