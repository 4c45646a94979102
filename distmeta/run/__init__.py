"""One run: its directory, its place, its start and end, its evaluations."""
