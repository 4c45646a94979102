"""The command line."""

from distmeta.cli.main import main

__all__ = ["main"]
