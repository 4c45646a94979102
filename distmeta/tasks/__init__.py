"""Task distributions p(T): few-shot classification, sequences, regression, and tasks from a function."""
