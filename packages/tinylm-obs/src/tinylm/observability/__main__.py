"""tinylm-obs · `python -m tinylm.observability` is `tinylm-obs`. Next: `cli.py`."""

from .cli import main

if __name__ == "__main__":
    main()
