"""`python -m tinylm.tokenizer` is `tinylm-tokenizer`."""

from tinylm.tokenizer.cli import main

if __name__ == "__main__":
    main()
