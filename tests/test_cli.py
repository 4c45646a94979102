"""The command line: every command through `distmeta.cli.main`, signals in a real subprocess, MLflow contents."""
