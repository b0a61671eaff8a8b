"""Run `python -m wsqueue`."""

from .cli.main import main

main()
