"""`python -m tinylm.model` is `tinylm-model`."""

from tinylm.model.cli import main

if __name__ == "__main__":
    main()
