"""Fuzz the parsers of answers by coverage, until one is slow or fails: ``pip install atheris``.

    python -m tests.support.fuzz_answers -max_total_time=600

The first byte chooses the question; the text after it is repeated, since slow parsers are slow on
repeats. libFuzzer's options and a corpus folder may follow; it writes what it found to ``crash-*``.
"""

import logging
import sys

import atheris

with atheris.instrument_imports(include=["pipeline.tasks"]):
    from tests.support.adversarial_answers import PATTERNS, QUESTIONS, cpu_seconds

_NAMES = sorted(QUESTIONS)
_NUM_CHARS = 8192
_SECONDS = 3.0


def try_one(data: bytes) -> None:
    if len(data) < 2:
        return
    name = _NAMES[data[0] % len(_NAMES)]
    once = data[1:].decode("utf-8", "surrogatepass" if data[0] >= 128 else "replace")
    for text in (once, once * (_NUM_CHARS // max(1, len(once)))):
        seconds, answer = cpu_seconds(name, text)
        assert seconds < _SECONDS, (name, seconds)
        assert not str(answer.note).startswith("the parser failed"), (name, answer.note)


def main() -> None:
    logging.disable()
    words = sorted({pattern.part[:60] for pattern in PATTERNS.values()})
    atheris.Setup([sys.argv[0], *sys.argv[1:]], _ignoring_bad_text, custom_mutator=_mutator(words))
    atheris.Fuzz()


def _ignoring_bad_text(data: bytes) -> None:
    try:
        try_one(data)
    except UnicodeDecodeError:
        return


def _mutator(words: list[str]):
    """Insert a part of a known pattern now and then; libFuzzer's own mutations else."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 3:
            return atheris.Mutate(data, max_size)
        word = words[seed % len(words)].encode("utf-8", "replace")
        at = seed // 7 % (len(data) + 1)
        return (data[:at] + word + data[at:])[:max_size]

    return mutate


if __name__ == "__main__":
    main()
