"""A callback of Ansible that runs a command when a play, or a task in it, begins for the nth time."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from ansible.plugins.callback import CallbackBase  # type: ignore[import-untyped]

DOCUMENTATION = """
name: dropout
type: aggregate
short_description: Run a command when a play or a task begins
description: DROPOUT in the environment has the play, the task, the number and the command as JSON.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible has no types
    """Run the command once."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "dropout"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._when = json.loads(os.environ["DROPOUT"])
        self._left = int(self._when["times"])
        self._is_in_play = False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Count the play; with `serial`, this is called for each batch."""
        self._is_in_play = play.get_name() == self._when["play"]
        if self._is_in_play:
            self._left -= 1
            if not self._when["task"]:
                self._begin()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Look whether this is the task."""
        if self._is_in_play and self._when["task"] and task.name.startswith(self._when["task"]):
            self._begin()

    def _begin(self) -> None:
        if self._left == 0:
            self._left = -1
            subprocess.run(self._when["command"], check=True)
