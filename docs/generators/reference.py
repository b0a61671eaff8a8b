"""Write docs/reference from docstrings, options and defaults: `python -m docs.generators.reference`."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import yaml

import wsqueue
from wsqueue.cli import main as cli
from wsqueue.client import values
from wsqueue.config import model

ROOT = Path(__file__).parent.parent.parent
DIRECTORY = ROOT / "docs" / "reference"
NOTE = (
    "<!-- Written by `python -m docs.generators.reference`: change what it is made of, not this file. -->\n"
)

ROLES = tuple(
    f"wsqueue{name}" for name in ("", "_consumer", "_producer", "_demo", "_monitoring", "_node", "_ca")
)
"""In the order in which a reader needs them: the base of all hosts, nodes, clients, and the rest."""

NAMES = {
    "Connect": ("connect",),
    "Publish and subscribe": ("Client", "Subscription", "ReaderSubscription", "GroupSubscription"),
    "Messages": ("Message", "Gap", "Position", "ReaderMessage", "GroupMessage"),
    "Errors": (
        "WsqueueError",
        "ConfigError",
        "ConnectError",
        "AuthenticationError",
        "NotAllowedError",
        "InvalidMessage",
        "PublishError",
        "WindowFull",
        "OwnerError",
        "GapError",
    ),
    "Settings": ("ClientConfig", "Limits", "Tls", "PreSharedKey", "Token", "Order", "CloseCode"),
}
"""All that `wsqueue` exports, in the order of the page."""

METHODS = {
    "Token": ("make", "text"),
    "Client": (
        "publish",
        "publish_nowait",
        "drain",
        "flush",
        "subscribe",
        "close",
        "confirmed",
        "lost_in_flight",
    ),
    "Subscription": ("__aenter__", "__anext__", "close"),
    "ReaderSubscription": ("__anext__", "flush"),
    "ReaderMessage": ("done", "done_nowait"),
    "GroupSubscription": ("__anext__", "flush"),
    "GroupMessage": ("done", "done_nowait", "again", "reject", "extend"),
}
"""Names for applications; the rest is for the other modules of wsqueue."""

TABLES: dict[str, type[msgspec.Struct]] = {
    "TLS": model.Tls,
    "Retention": model.Retention,
    "Retention by topic": model.TopicRetention,
    "Monitoring": model.Monitoring,
    "Limits": model.Limits,
    "Clients": model.NamedClient,
    "Proxy": model.Proxy,
}

LISTS = {"Retention by topic": "retention.topics", "Clients": "clients"}
"""Those of which there may be several."""


def pages() -> dict[str, str]:
    """Return the text of each file."""
    return {
        "cli.md": "\n".join(command_line()),
        "client.md": "\n".join(python_client()),
        "configuration.md": "\n".join(configuration()),
        "roles.md": "\n".join(roles()),
    }


# --- The command line ---


def command_line() -> Iterator[str]:
    """Write the help of each command."""
    yield f"# Command line\n\n{NOTE}"
    yield "What `wsqueue --help` and `wsqueue COMMAND --help` say, `-h` for short. All commands have the same"
    yield "[exit codes](../operations.md#exit-codes).\n"
    yield from _command(cli.main, "wsqueue", None)


def _command(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    name = path.rpartition(" ")[2]
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"## {path}\n\n```text\n{usage}\n```\n"
    yield from _help(command.help or "")
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        yield "| option | default | meaning |\n|---|---|---|"
        yield from (_option(option, context) for option in options)
        yield ""
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            sub = command.get_command(context, name)
            assert sub is not None
            if not sub.hidden:
                yield from _command(sub, f"{path} {name}", context)


def _help(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        verbatim = paragraph.startswith("\b")
        lines = paragraph.lstrip("\b\n").splitlines()
        if verbatim and lines[0].endswith(":"):
            block = inspect.cleandoc("\n".join(["", *lines[1:]]))
            yield f"{lines[0]}\n\n```text\n{block}\n```\n"
        else:
            yield _options_as_code(" ".join(lines)) + "\n"


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    meaning, _, default = _options_as_code(option.help or "").partition("  [default: ")
    default = default.rstrip("]")
    if option.show_default and not default:
        name = (
            option.default
            if not option.is_flag
            else (option.opts if option.default else option.secondary_opts)[0]
        )
        default = str(name)
    if option.envvar and option.show_envvar:
        meaning += f" Also the environment variable `{option.envvar}`."
    return _row(f"{names}{value}", f"`{default}`" if default else "", meaning)


def _options_as_code(text: str) -> str:
    return re.sub(r"(?<![\w`-])(--?[a-z][\w-]*)", r"`\1`", text)


# --- The client ---


def python_client() -> Iterator[str]:
    """Write the docstrings of the client."""
    exported = set(wsqueue.__all__) - {"__version__"}
    assert {name for names in NAMES.values() for name in names} == exported
    yield f"# Python client\n\n{NOTE}"
    yield "`import wsqueue`: an asyncio client for Python 3.11 and later. The [tutorial](../tutorial.md)"
    yield "shows it at work.\n"
    for title, names in NAMES.items():
        yield f"## {title}\n"
        for name in names:
            thing = getattr(wsqueue, name)
            yield from _function(name, thing, "###") if inspect.isfunction(thing) else _class(name, thing)
        if title == "Publish and subscribe":
            yield "### Start\n\n```python\nStart = " + _constant("Start")[0] + "\n```\n"
            yield _constant("Start")[1] + "\n"


def _function(name: str, function: Any, heading: str) -> Iterator[str]:
    awaited = "await " if inspect.iscoroutinefunction(function) else ""
    owner, _, method = name.rpartition(".")
    shown = {"__aenter__": "async with", "__anext__": "async for"}.get(method)
    yield f"{heading} {f'{shown} {owner}' if shown else name}\n"
    if shown is None:
        yield f"```python\n{awaited}{_signature(method, function)}\n```\n"
    yield from _docstring(function)


def _class(name: str, kind: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if issubclass(kind, wsqueue.WsqueueError) and kind is not wsqueue.WsqueueError:
        yield f"A `{kind.__mro__[1].__name__}`.\n"
    yield from _docstring(kind)
    if issubclass(kind, wsqueue.CloseCode):
        yield "| code | name | reason | try again |\n|---|---|---|---|"
        for code in wsqueue.CloseCode:
            yield _row(str(code.value), f"`{code.name}`", code.reason, "yes" if code.reconnect else "no")
        yield ""
    elif issubclass(kind, enum.Enum):
        yield "\n".join(f"- `{name}.{member.name}`: `{member.value!r}`" for member in kind) + "\n"
    methods: tuple[str, ...] = METHODS.get(name, ())
    if issubclass(kind, msgspec.Struct):
        properties = (method for method, value in vars(kind).items() if isinstance(value, property))
        methods = (*methods, *properties)
    for method in dict.fromkeys(methods):
        value = inspect.getattr_static(kind, method)
        if isinstance(value, classmethod):
            value = getattr(kind, method)
        if isinstance(value, property):
            yield f"#### {name}.{method}\n"
            yield from _docstring(value)
        else:
            yield from _function(f"{name}.{method}", value, "####")


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.append(f"*{parameter.name}: {parameter.annotation}")
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        default = parameter.default
        shown = str(default) if isinstance(default, enum.Enum) else repr(default)
        parts.append(
            f"{parameter.name}: {parameter.annotation}"
            + ("" if default is parameter.empty else f" = {shown}")
        )
    result = signature.return_annotation
    line = f"{name}({', '.join(parts)}) -> {result}"
    return (
        line
        if len(line) <= 90
        else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {result}"
    )


def _docstring(thing: Any) -> Iterator[str]:
    """Write a docstring in Google's style as Markdown."""
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    body, *sections = re.split(r"^(Args|Attributes|Raises|Returns):\n", text, flags=re.MULTILINE)
    yield body.strip() + "\n"
    for title, section in zip(sections[::2], sections[1::2], strict=True):
        entries = re.findall(r"^(\w+): ((?:.*\n?)(?:^ +.*\n?)*)", inspect.cleandoc(section), re.MULTILINE)
        verb = "raises " if title == "Raises" else ""
        yield "\n".join(f"- {verb}`{name}`: {' '.join(meaning.split())}" for name, meaning in entries) + "\n"


def _constant(name: str) -> tuple[str, str]:
    """Return the value and the docstring of a constant of the client's values, as they are written."""
    found = re.search(rf'^{name} = (.*)\n"""(.*?)"""', inspect.getsource(values), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1], " ".join(found[2].split())


# --- The configuration ---


def configuration() -> Iterator[str]:
    """Write the types of all keys, with their descriptions in docs/configuration.md."""
    yield f"# Configuration keys\n\n{NOTE}"
    yield "The keys of each file with their types and bounds, which [configuration](../configuration.md)"
    yield "explains. A key that is not here is refused.\n"
    kinds: tuple[type[model.Config], ...] = (model.ConsumerConfig, model.ProducerConfig, model.ClientConfig)
    for kind in kinds:
        role = model.role_of(kind)
        yield f"## A file of role {role}\n\n| key | type | default | meaning |\n|---|---|---|---|"
        yield _row("`role`", f'`"{role}"`', "required", "what the file is for")
        yield from _keys(kind, _documented_keys("Keys"))
        yield ""
    for title, table in TABLES.items():
        name = title.lower()
        yield f"## {title}\n"
        yield f"Each table `[[{LISTS[title]}]]`.\n" if title in LISTS else f"The table `[{name}]`.\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield from _keys(table, _documented_keys(title))
        yield ""


def _keys(kind: type[msgspec.Struct], meanings: dict[str, str]) -> Iterator[str]:
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    own = dict(re.findall(r"^    (\w+): (.*(?:\n        .*)*)", inspect.getdoc(kind) or "", re.MULTILINE))
    for field in described.fields:
        table = isinstance(field.type, msgspec.inspect.StructType)
        name = f"[{field.name}]" if table else field.name
        meaning = meanings.get(name) or " ".join(own.get(field.name, "").split())
        if table:
            meaning = f"[below](#{field.name})"
        yield _row(f"`{name}`", _type(field.type), _default(field), meaning)


def _default(field: msgspec.inspect.Field) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return "none"
    if field.default is msgspec.NODEFAULT:
        return "required"
    if isinstance(field.default, msgspec.Struct):
        return ""
    return "none" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"


def _type(kind: msgspec.inspect.Type) -> str:
    """Return a type as a user has to know it."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            text = ", ".join(_type(one) for one in types if not isinstance(one, msgspec.inspect.NoneType))
        case msgspec.inspect.IntType(ge=least, le=most):
            text = "integer" + _bounds(f"from {least}", most)
        case msgspec.inspect.FloatType(gt=least, le=most):
            text = "number" + _bounds(f"above {least}", most)
        case msgspec.inspect.LiteralType(values=values):
            text = " or ".join(f'`"{value}"`' for value in values)
        case msgspec.inspect.EnumType(cls=cls):
            text = " or ".join(f'`"{member.value}"`' for member in cls)
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            text = f"list of {_type(item)}s"
        case _:
            text = OTHER_TYPES[type(kind)]
    return text


def _bounds(least: str, most: float | None) -> str:
    return f" {least} to {most:,}" if most is not None else ""


OTHER_TYPES: dict[type[msgspec.inspect.Type], str] = {
    msgspec.inspect.StrType: "string",
    msgspec.inspect.BoolType: "`true` or `false`",
    msgspec.inspect.StructType: "table",
}


def _documented_keys(title: str) -> dict[str, str]:
    """Return the last cell of the rows in a section of docs/configuration.md, by their key."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    section = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\[?\w+\]?)` \|.*\| (.*) \|$", section[1] if section else "", re.MULTILINE)
    return {key: _from_below(meaning, "configuration.md") for key, meaning in rows}


def _from_below(text: str, document: str) -> str:
    """Return text of a document in docs with links that are right in docs/reference."""
    text = re.sub(r"\]\(#", f"](../{document}#", text)
    return re.sub(r"\]\((?!https?:|\.\./)", "](../", text)


# --- The roles ---


def roles() -> Iterator[str]:
    """Write the variables of the Ansible roles."""
    yield f"# Variables of the roles\n\n{NOTE}"
    yield "All variables of the Ansible roles; [deploy](../deploy.md) says how they are used.\n"
    for role in ROLES:
        file = ROOT / "ansible" / "roles" / role / "meta" / "argument_specs.yml"
        specification = yaml.safe_load(file.read_text())["argument_specs"]["main"]
        yield f"## {role}\n\n{specification['short_description']}.\n"
        yield "| variable | type | default | meaning |\n|---|---|---|---|"
        yield from _variables(specification["options"])
        yield ""


def _variables(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        if "choices" in option:
            kind = " or ".join(f"`{msgspec.json.encode(choice).decode()}`" for choice in option["choices"])
        default = "required" if option.get("required") else ""
        if "default" in option:
            default = f"`{msgspec.json.encode(option['default']).decode()}`"
        yield _row(f"`{prefix}{name}`", kind, default, " ".join(option["description"].split()))
        yield from _variables(option.get("options", {}), f"{prefix}{name}.")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def main() -> None:
    """Write the files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DIRECTORY / name).write_text(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
