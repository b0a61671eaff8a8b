from __future__ import annotations

from pathlib import Path

import pytest

from ...support.config_files import ConfigFile


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSQUEUE_PSK", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
