"""The commands about the command line itself: shell completion and the manual page."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .common import COMPLETE_VARIABLE


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    With it, the shell completes commands, options and names of files.

    \b
    Examples:
      wsqueue completion bash > /etc/bash_completion.d/wsqueue
      wsqueue completion zsh > "${fpath[1]}/_wsqueue"
      wsqueue completion fish > ~/.config/fish/completions/wsqueue.fish
      source <(wsqueue completion bash)
    """
    kind = get_completion_class(shell)
    assert kind is not None
    main = click.get_current_context().find_root().command
    script = kind(main, {}, "wsqueue", COMPLETE_VARIABLE)
    # Not `source()`: it fails on a host that does not have the shell.
    click.echo((script.source_template % script.source_vars()).strip())


@click.command()
def man() -> None:
    """Print the manual page wsqueue(1).

    \b
    Examples:
      wsqueue man | man -l -
      wsqueue man > /usr/local/share/man/man1/wsqueue.1
    """
    from .manual import manual  # noqa: PLC0415 - no other command needs it

    main = click.get_current_context().find_root().command
    assert isinstance(main, click.Group)
    click.echo(manual(main), nl=False)
