"""A finished run in use: load it, give it a few examples, ask about the next one."""
