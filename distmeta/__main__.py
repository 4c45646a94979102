"""``python -m distmeta``."""

from distmeta.cli.main import main

if __name__ == "__main__":
    main()
