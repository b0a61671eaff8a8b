"""The documents agree with the code: tables, names, numbers, examples and links."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import tomli

from tests.support.documents import code_blocks, rows
from tests.support.paths import ROOT
from wsqueue.cli.common import ExitCode
from wsqueue.config import model
from wsqueue.config.load import load_any_config
from wsqueue.config.model import Limits
from wsqueue.log import health, shared
from wsqueue.monitoring import pages, reporter
from wsqueue.monitoring.metrics import METRICS
from wsqueue.net.certificates import EXPIRY_WARNING
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.hello import TRANSITIONS, HelloState, HelloStep
from wsqueue.protocol.hello_v2 import TRANSITIONS_V2
from wsqueue.protocol.keys import FINGERPRINT_COST, FINGERPRINT_SALT
from wsqueue.protocol.v2 import PACKETS, RefusalCode
from wsqueue.report import report, stats, warnings
from wsqueue.version import __version__

TABLES: dict[str, type[msgspec.Struct]] = {
    "limits": Limits,
    "monitoring": model.Monitoring,
    "proxy": model.Proxy,
    "retention": model.Retention,
    "retention.jetstream": model.JetStream,
    "retention.topics": model.TopicRetention,
    "tls": model.Tls,
}
TITLES = {
    "tls": "TLS",
    "retention": "Retention",
    "retention.jetstream": "A log that consumers share",
    "retention.topics": "Retention by topic",
    "monitoring": "Monitoring",
    "proxy": "The nodes",
}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_the_limits_and_their_defaults() -> None:
    documented = {row[0].strip("`"): float(row[1]) for row in rows("docs/configuration.md", "Limits")}
    assert documented == {key: float(value) for key, value in msgspec.structs.asdict(Limits()).items()}


def test_the_configuration_keys() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("docs/configuration.md", "Keys")}
    kinds = (model.ConsumerConfig, model.ProducerConfig, model.ClientConfig)
    keys = {"role", *(field for kind in kinds for field in kind.__struct_fields__)}
    assert set(documented) == {f"[{key}]" if key in TABLES else key for key in keys}
    for kind in kinds:
        for field in kind.__struct_fields__:
            roles = documented[f"[{field}]" if field in TABLES else field]
            assert roles == "all" or model.role_of(kind) in roles.split(", ")


@pytest.mark.parametrize("table", list(TITLES))
def test_the_tables_of_the_configuration(table: str) -> None:
    document = "docs/proxies.md" if table == "proxy" else "docs/configuration.md"
    found = rows(document, TITLES[table])
    documented = {row[0].strip("`"): row[1].strip("`") for row in found}
    assert set(documented) == set(TABLES[table].__struct_fields__)
    for field in msgspec.structs.fields(TABLES[table]):
        if field.required:
            assert documented[field.name] == "required"
            continue
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        text = "none" if default is None else msgspec.json.encode(default).decode()
        assert documented[field.name] == text


def test_the_close_codes() -> None:
    documented = [(int(row[0]), row[1], row[2]) for row in rows("docs/protocol.md", "Close codes")]
    assert documented == [(code.value, code.reason, "yes" if code.reconnect else "no") for code in CloseCode]


def test_the_states_of_the_hello() -> None:
    documented = {row[0]: row[1:] for row in rows("docs/protocol.md", "Hello")}
    for state in HelloState:
        cells = [TRANSITIONS[state, step] for step in (HelloStep.CHALLENGE, HelloStep.ANSWER)]
        assert documented[state.value] == [str(cell.value) for cell in cells]


def test_the_states_of_the_hello_of_v2() -> None:
    documented = {(row[0], row[1]): row[2:] for row in rows("docs/protocol.md", "Hello of v2")}
    rendered: dict[tuple[str, str], list[str]] = {}
    for (role, state, _step), cell in TRANSITIONS_V2.items():
        rendered.setdefault((role.value, state.value), []).append(str(cell.value))
    assert documented == rendered


def test_the_packets_of_v2() -> None:
    documented = [row[0].strip("`") for row in rows("docs/protocol.md", "Packets of v2")]
    assert documented == [packet.__struct_config__.tag for packet in PACKETS]


def test_the_codes_of_refusals_and_warnings() -> None:
    documented = [row[0].strip("`") for row in rows("docs/protocol.md", "Refusals")]
    assert documented == list(get_args(RefusalCode))
    documented = [row[0].strip("`") for row in rows("docs/monitoring.md", "Warnings")]
    assert sorted(documented) == sorted(get_args(report.WarningCode))


def test_the_limits_of_the_protocol() -> None:
    units = {"": 1, "KiB": 1024, "MiB": 1024**2}
    documented = rows("docs/protocol.md", "Limits")
    for name, value, _ in documented:
        module, constant = name.strip("`").rsplit(".", 1)
        number, _, unit = value.partition(" ")
        assert getattr(importlib.import_module(f"wsqueue.{module}"), constant) == int(number) * units[unit]
    assert len(documented) > 10


def test_the_fields_of_reports() -> None:
    documented = rows("docs/monitoring.md", "Reports")
    fields = [name for row in documented for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(fields) == sorted(report.Report.__struct_fields__)
    parts: dict[str, type[msgspec.Struct]] = {
        "connections": report.ConnectionCount,
        "links": report.LinkStatus,
        "log": report.LogStatus,
        "confirm_seconds": report.HistogramStatus,
        "top_topics": report.TopicStatus,
        "lags": report.LagStatus,
        "slow_peers": report.SlowPeer,
        "warnings": report.NodeWarning,
    }
    for field, part in parts.items():
        (row,) = (row for row in documented if f"`{field}`" in row[0])
        missing = set(part.__struct_fields__) - set(re.findall(r"`(\w+)`", row[1]))
        assert missing == ({"count"} if field == "connections" else set()), field


def test_the_fields_of_a_shared_log() -> None:
    documented = rows("docs/monitoring.md", "A shared log")
    fields = [name for row in documented for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(fields) == sorted(report.EngineStatus.__struct_fields__)


def test_the_fields_of_a_cluster() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    (sentence,) = re.findall(r"^`/cluster.json` has (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"`(\w+)`", sentence))
    assert words == {*report.Cluster.__struct_fields__, *report.ClusterNode.__struct_fields__}


def test_the_numbers_of_monitoring() -> None:
    text = " ".join((ROOT / "docs/monitoring.md").read_text().split())
    assert report.FRESH_SECONDS == 0.5
    assert "A report is made at most twice a second" in text
    assert (warnings.MAX_LAG_SECONDS, stats.WINDOW_SECONDS, report.MAX_SLOW_PEERS) == (0.5, 10.0, 10)
    assert "more than half a second late" in text
    assert "in the last 10 to 20 seconds" in text
    assert "and the ten that are furthest behind" in text
    assert warnings.NEARLY_FULL == 0.9
    assert "more than 9 of 10 connections" in text
    assert reporter.RECENT_WINDOWS * stats.WINDOW_SECONDS == 60.0
    assert warnings.MANY_REFUSALS == 5
    assert "at least five hellos were refused in the last minute" in text
    assert f"by more than {warnings.MAX_CLOCK_SECONDS:g} seconds" in text
    assert f"within {EXPIRY_WARNING.days} days" in text
    assert (shared.FAR_BEHIND_RECORDS, health.UNAVAILABLE_SECONDS) == (1000, 1.0)
    assert f"by more than 1,000 records for {warnings.MAX_REPLICA_LAG_SECONDS:g} seconds" in text
    assert FINGERPRINT_SALT == b"wsqueue fingerprint"
    assert f"(salt `wsqueue fingerprint`, N {FINGERPRINT_COST}, r 8, p 1)" in text


def test_the_table_of_metrics() -> None:
    documented = [
        (name.strip("`"), kind, tuple(re.findall(r"`(\w+)`", labels)), node, text)
        for name, kind, labels, node, text in rows("docs/metrics.md", "Names")
    ]
    assert documented == [(one.name, one.kind, one.labels, one.node, one.text) for one in METRICS]


def test_the_pages() -> None:
    documented = {row[0].strip("`") for row in rows("docs/monitoring.md", "Monitoring")}
    assert {f"http://NODE{path}" for path in pages.PAGES} <= documented


def test_the_exit_codes() -> None:
    documented = {row[0]: row[1] for row in rows("docs/operations.md", "Exit codes")}
    assert documented == {str(code): code.meaning for code in ExitCode}


def test_the_logged_events_and_the_counters() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "wsqueue").rglob("*.py"))
    events = set(re.findall(r'(?:log\(\s*logger,\s*[\w.]+,|_complain\()\s*"([^"]+)"', code))
    documented = {
        name for row in rows("docs/operations.md", "Logs") for name in re.findall(r"`(.+?)`", row[0])
    }
    assert events == documented
    counters = set(re.findall(r'counters\[f?"([\w{}]+)"\]', code))
    names = [
        name for row in rows("docs/operations.md", "Counters") for name in re.findall(r"`(.+?)`", row[0])
    ]
    documented = {name.replace("<code>", "{code}") for name in names}
    assert counters == documented - {"open", "refused_{code}", "refused_by_peer"}


@pytest.mark.parametrize("document", ["docs/configuration.md", "docs/how-to.md", "docs/metrics.md"])
def test_the_configuration_examples_are_good(document: str, tmp_path: Path) -> None:
    blocks = code_blocks(ROOT / document, "toml")
    assert blocks
    for block in blocks:
        file = tmp_path / "example.toml"
        file.write_text(block)
        load_any_config(file)


def test_the_recipes_are_python() -> None:
    blocks = code_blocks(ROOT / "docs" / "how-to.md", "python")
    assert blocks
    for block in blocks:
        compile(block, "how-to.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_tests_that_show_the_guarantees_are_there() -> None:
    shown = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "guarantees.md").read_text())
    assert len(shown) > 10
    for file, test in shown:
        assert (f"def {test}(" if test else "") in (ROOT / file).read_text(), f"{file}: {test}"


def test_contributing_names_files_and_words_that_exist() -> None:
    quoted = set(re.findall(r"`([\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    paths = {name for name in quoted if "/" in name and not name.startswith(".")}
    texts = []
    for name in paths:
        found = [ROOT / name] if (ROOT / name).exists() else list(ROOT.glob(f"ansible/roles/*/{name}"))
        assert found, name
        texts += [file.read_text() for file in found if file.is_file()]
    assert len(texts) > 30
    for name in quoted - paths:
        assert any(name.rpartition(".")[2] in text for text in texts), name


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 700
    assert max(map(len, text.splitlines())) <= 100


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
            file = document.parent / target if target else document
            assert file.exists(), f"{document.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{document.name}: {target}#{anchor}"


def test_the_changelog_has_the_version() -> None:
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("what", ["nodes", "deploy", "dev", "build"])
def test_all_that_is_installed_is_pinned_with_hashes(what: str) -> None:
    lines = (ROOT / "requirements" / f"{what}.txt").read_text().splitlines()
    names = [match[1] for line in lines if (match := re.match(r"([\w.-]+)==\S+( ; .*[^ ])? \\$", line))]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
    comments = [line for line in lines if line.startswith("#")]
    # Nothing else, so no address of an index and no file.
    assert len(names) + len(hashes) + len(comments) == len(lines)
    project = tomli.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    nodes = [*project["project"]["dependencies"], *extras["cli"], *extras["node"], *extras["jetstream"]]
    wanted = {
        "nodes": nodes,
        "deploy": [*nodes, *extras["deploy"]],
        "dev": [*project["project"]["dependencies"], *(name for extra in extras.values() for name in extra)],
        "build": project["dependency-groups"]["build"],
    }
    # An extra may name others of the package itself.
    assert {re.split(r"[<>=\[]", name)[0] for name in wanted[what]} - {"wsqueue"} <= set(names)


def test_a_package_has_one_build_tool_wherever_it_is_built() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())
    [tool] = project["build-system"]["requires"]
    assert tool in project["dependency-groups"]["build"]
    assert f"\n{tool} \\\n" in (ROOT / "requirements" / "build.txt").read_text()
