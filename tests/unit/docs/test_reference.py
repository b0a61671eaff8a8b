"""The reference agrees with docstrings, options and defaults."""

from __future__ import annotations

import pytest

from docs.generators import reference
from tests.support.paths import ROOT

DIRECTORY = ROOT / "docs" / "reference"
PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_the_one_that_the_code_makes(name: str) -> None:
    assert (DIRECTORY / name).read_text() == PAGES[name].rstrip("\n") + "\n", (
        "run python -m docs.generators.reference, and commit what it writes"
    )


def test_there_are_no_other_pages() -> None:
    assert {file.name for file in DIRECTORY.iterdir()} == set(PAGES)


def test_a_command_has_its_help_its_examples_and_its_options() -> None:
    section = PAGES["cli.md"].split("## wsqueue subscribe\n")[1].split("\n## ")[0]
    assert "wsqueue subscribe [OPTIONS] TOPIC..." in section
    assert "Print the messages of each TOPIC" in section
    assert "\nwsqueue subscribe --from earliest --no-follow news\n" in section
    assert "| `--from` START | `latest` | " in section


def test_a_key_has_its_type_its_bounds_its_default_and_its_meaning() -> None:
    line = "| `max_topic_bytes` | integer from 1 to 2,600 | `256` | a topic in UTF-8, because nodes"
    assert line in PAGES["configuration.md"]


def test_a_method_has_its_signature_and_its_errors() -> None:
    assert "\nawait publish(\n    topic: str,\n    *data: str | bytes,\n    headers: " in PAGES["client.md"]
    assert "- raises `PublishError`: The consumer refused" in PAGES["client.md"]


def test_a_variable_of_a_role_has_its_default() -> None:
    assert "| `wsqueue_release_keep` | int | `3` | Releases that stay on a host" in PAGES["roles.md"]
