"""`python -m tinylm.training` is `tinylm-train`."""

from tinylm.training.cli import main

if __name__ == "__main__":
    main()
