"""Run the command line: `wsqueue` and `python -m wsqueue`."""

import sys

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ends while it is being imported."""


def main() -> None:
    """Run the command line, or name a package that it lacks; `pip install wsqueue` brings the client only."""
    try:
        from .cli.main import main as command_line  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "wsqueue").partition(".")[0] == "wsqueue":
            raise
        sys.exit(f"Error: the command line needs {error.name}, which pip install 'wsqueue[cli]' installs.")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command_line()


if __name__ == "__main__":
    main()
