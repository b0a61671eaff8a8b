"""The manual page wsqueue(1), made of the help texts: roff, in the macros of man(7)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence

import click

from ..version import __version__
from .common import CONFIG_VARIABLE, DEFAULT_CONFIG, ExitCode

ENVIRONMENT = {
    CONFIG_VARIABLE: "The configuration file of clients, unless --config is given.",
    "WSQUEUE_PSK": "The pre-shared key, for development only: other users may be able to read it.",
    "NO_COLOR": "If it is set and not empty, nothing is coloured.",
}

FILES = {
    DEFAULT_CONFIG: f"The configuration file of clients, if neither --config nor {CONFIG_VARIABLE} is given.",
    "/etc/wsqueue/psk": "The pre-shared key, where the deployment puts it.",
}

_ESCAPES = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
)
"""Characters that roff would take for the beginning of an escape, or print as typographic signs."""


def manual(group: click.Group) -> str:
    """Return the manual page of a group of commands."""
    return "\n".join(_page(group)) + "\n"


def _page(group: click.Group) -> Iterator[str]:
    context = click.Context(group, info_name="wsqueue")
    summary, *description = _split(group)
    yield f'.TH WSQUEUE 1 "" "wsqueue {__version__}" "User Commands"'
    yield f".SH NAME\nwsqueue \\- {_roff(summary.rstrip('.'))}"
    yield f".SH SYNOPSIS\n.B wsqueue\n{_roff('[OPTION]... COMMAND [ARGUMENT]...')}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(description)
    yield ".SH OPTIONS"
    yield from _options(group.get_params(context), context)
    yield ".SH COMMANDS"
    for name, command in sorted(group.commands.items()):
        yield from _command(command, click.Context(command, parent=context, info_name=name))
    yield from _terms("EXIT STATUS", {str(code): code.meaning for code in ExitCode})
    yield from _terms("ENVIRONMENT", ENVIRONMENT)
    yield from _terms("FILES", FILES)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    path = _roff(context.command_path)
    yield f'.SS "{path}"\n.B {path}\n{_roff(" ".join(command.collect_usage_pieces(context)))}\n.PP'
    yield from _paragraphs(_split(command))
    yield from _options(command.params, context)


def _options(parameters: Sequence[click.Parameter], context: click.Context) -> Iterator[str]:
    for option in parameters:
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            yield from _term(*record)


def _terms(heading: str, terms: Mapping[str, str]) -> Iterator[str]:
    yield f".SH {heading}"
    for term, meaning in terms.items():
        yield from _term(term, meaning)


def _term(term: str, meaning: str) -> Iterator[str]:
    yield f".TP\n.B {_roff(term)}\n{_roff(' '.join(meaning.split()))}"


def _split(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _paragraphs(paragraphs: Sequence[str]) -> Iterator[str]:
    """Yield paragraphs with breaks between; one that begins with a backspace keeps its lines."""
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if paragraph.startswith("\b\n"):
            yield f".nf\n{_roff(paragraph[2:])}\n.fi"
        else:
            yield _roff(paragraph)


def _roff(text: str) -> str:
    """Return text in which roff sees no request, no escape and no typographic sign."""
    return re.sub(r"^\.", r"\\&.", text.translate(_ESCAPES), flags=re.MULTILINE)
