"""The command line. Importing it loads typer and rich alone; each command imports what it needs when it runs."""

from distmeta.cli.main import main

__all__ = ["main"]
