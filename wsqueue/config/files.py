"""Read small files: an error names the file, and a secret must not be readable by all users."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import ConfigError


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises:
        ConfigError: The file can't be read or is too large.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(path)) from None
    except ValueError as error:
        # A NUL in the name.
        raise ConfigError(f"cannot read it: {error}", file=str(path)) from None
    if len(content) > limit:
        raise ConfigError(f"the file has more than {limit} bytes", file=str(path))
    return content


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file of at most `limit` bytes.

    Raises:
        ConfigError: The file can't be read, is too large or is not UTF-8.
    """
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError:
        raise ConfigError("the file is not UTF-8", file=str(path)) from None


def read_secret(path: Path, limit: int) -> str:
    """Return the text of a file that only its owner and group may read.

    Raises:
        ConfigError: The file can't be read, is too large or not UTF-8, or all users may read it.
    """
    secret = read_text(path, limit)
    # The bits mean nothing on Windows, which has access control lists.
    if os.name == "posix" and path.stat().st_mode & stat.S_IROTH:
        raise ConfigError(f"all users may read the key; expected `chmod o= {path}`", file=str(path))
    return secret
