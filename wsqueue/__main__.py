"""Run `python -m wsqueue`."""

from .cli import main

main()
