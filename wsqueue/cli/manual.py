"""The manual page wsqueue(1), made of the help texts: roff, in the macros of man(7)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

import click

from .common import ExitCode

ENVIRONMENT = {
    "WSQUEUE_CONFIG": "The file of --config, where that is not given.",
    "WSQUEUE_PSK": "The pre-shared key, for development only: others may see it.",
    "NO_COLOR": "When it is not empty, nothing is coloured.",
}

FILES = {
    "/etc/wsqueue/demo.toml": "Configuration of clients, where neither --config nor WSQUEUE_CONFIG says so.",
    "/etc/wsqueue/psk": "Where the deployment puts the pre-shared key.",
}


def manual(group: click.Group, version: str, exit_codes: Iterable[ExitCode]) -> str:
    """Return the manual page of a group of commands.

    Args:
        group: With all commands.
        version: Of the package.
        exit_codes: How commands end.
    """
    context = click.Context(group, info_name="wsqueue", max_content_width=78)
    summary, *rest = _paragraphs(group.help or "")
    lines = [
        f'.TH WSQUEUE 1 "" "wsqueue {version}" "User Commands"',
        ".SH NAME",
        f"wsqueue \\- {_text(summary.rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B wsqueue",
        _text("[OPTION]... COMMAND [ARGUMENT]..."),
        ".SH DESCRIPTION",
        *_body(rest),
        ".SH OPTIONS",
        *_options(group, context),
        ".SH COMMANDS",
    ]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        lines += _command(command, click.Context(command, parent=context, info_name=name))
    lines.append(".SH EXIT STATUS")
    for code in exit_codes:
        lines += _item(str(code), code.meaning)
    for title, entries in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        lines.append(f".SH {title}")
        for name, meaning in entries.items():
            lines += _item(name, meaning)
    return "\n".join(lines) + "\n"


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f'.SS "{_text(context.command_path)}"'
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f".B {_text(context.command_path)}"
    yield _text(pieces)
    yield ".PP"
    yield from _body(_paragraphs(command.help or ""))
    yield from _options(command, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        # Every command has --help, and the arguments are in the text.
        if record is not None and isinstance(parameter, click.Option) and parameter.opts != ["--help"]:
            yield from _item(*record)


def _item(term: str, meaning: str) -> list[str]:
    return [".TP", f".B {_text(term)}", *_filled(meaning)]


def _body(paragraphs: Iterator[str] | list[str]) -> Iterator[str]:
    """Yield paragraphs, each after a break; what begins with a backspace keeps its lines."""
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            yield ".nf"
            yield from (_text(line) for line in paragraph.removeprefix("\b\n").split("\n"))
            yield ".fi"
        else:
            yield from _filled(paragraph)


def _filled(text: str) -> list[str]:
    """Return a paragraph in short lines, as people who look at the source like it."""
    lines = textwrap.wrap(" ".join(text.split()), 72, break_long_words=False, break_on_hyphens=False)
    return [_text(line) for line in lines]


def _paragraphs(text: str) -> list[str]:
    lines = "\n".join(line.rstrip() for line in _dedent(text).strip("\n").split("\n"))
    return [paragraph for paragraph in re.split(r"\n{2,}", lines) if paragraph.strip()]


def _dedent(text: str) -> str:
    """Take away what all lines but the first are indented by: that of a docstring."""
    first, *others = text.split("\n")
    indents = [len(line) - len(line.lstrip(" ")) for line in others if line.strip()]
    indent = min(indents, default=0)
    return "\n".join([first.strip(), *(line[indent:] for line in others)])


def _text(text: str) -> str:
    """Return text of which roff takes nothing for a request, an escape or a typographic sign."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = escaped.replace("^", "\\(ha").replace("~", "\\(ti").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
