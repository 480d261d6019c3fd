"""`python -m tinylm.inference ...` is the same command as `tinylm-infer ...`. All of it is in `cli.py`."""

from tinylm.inference.cli import main

if __name__ == "__main__":
    main()
