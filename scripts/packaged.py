"""Values that all packages of a release share."""

from __future__ import annotations

PACKAGED = 499162500
"""The time of all files in a package, in Unix seconds: that of npm, which no tool takes for a mistake."""
