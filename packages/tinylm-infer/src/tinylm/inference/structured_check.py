"""tinylm.inference: tries a grammar out, as a program: the grammar on standard input, what is wrong with it on output.

Preparing a grammar can take any time and memory (a schema of 40 characters can ask for millions of states), in native
code that no thread can interrupt. Here it may take 2 s of processor time and 1 GiB; whoever started this program sees
it fail otherwise. It imports nothing of tinylm, so that it starts quickly. Next: `structured.py`.
"""

import contextlib
import sys

SECONDS, MEMORY, STEPS = 2, 1 << 30, 2


def _limit() -> None:
    with contextlib.suppress(ImportError):  # Windows has only the caller's time limit
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Bytes:
    """The smallest vocabulary that can write everything."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def main() -> None:
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    _limit()
    grammar = sys.stdin.buffer.read().decode()
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(_Bytes())), grammar, log_level=0)
    for _ in range(STEPS):  # the first steps are part of what it costs, and the second may find it too large
        if matcher.get_error() or matcher.is_stopped():
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.consume_token((mask & -mask).bit_length() - 1)  # the lowest of the bytes that may follow
    sys.stdout.buffer.write(matcher.get_error().encode())


if __name__ == "__main__":
    main()
