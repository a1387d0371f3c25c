"""How many units vLLM has at a time, and what each takes of its cache and its time."""

import asyncio
import time

from pipeline.engines.vllm.prefix import KeptPrefix
from schemas.tables.unit import PreparedUnit


class Admission:
    """Admits units in order up to a limit of prompt tokens, and gives each its share of time.

    limit: prompt tokens.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._num_tokens, self._num_units = limit, 0, 0
        self._changed = asyncio.Condition()
        self._clock, self._read_at = 0.0, time.perf_counter()

    async def enter(self, num_tokens: int) -> None:
        """Wait until the unit fits; a unit that exceeds the limit is admitted alone."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._num_units or self._num_tokens + num_tokens <= self._limit
            )
            self.read_clock()
            self._num_tokens, self._num_units = self._num_tokens + num_tokens, self._num_units + 1

    async def leave(self, num_tokens: int) -> None:
        """Release the unit's tokens."""
        async with self._changed:
            self.read_clock()
            self._num_tokens, self._num_units = self._num_tokens - num_tokens, self._num_units - 1
            self._changed.notify_all()

    def read_clock(self) -> float:
        """Read a clock in seconds that runs n times slower while n units are admitted.

        The difference of two readings is a unit's share of the engine's time between them.
        """
        now = time.perf_counter()
        if self._num_units:
            self._clock += (now - self._read_at) / self._num_units
        self._read_at = now
        return self._clock


def num_cache_tokens(unit: PreparedUnit, kept: KeptPrefix) -> int:
    """Tokens of a unit's prompts in the cache: what is kept of their beginning counts once."""
    if not unit.prompts:
        return 0
    lengths = [len(prompt.input_ids or ()) for prompt in unit.prompts]
    begins = [prompt.num_prompt_tokens - prompt.num_own_tokens for prompt in unit.prompts]
    shared, further = min(begins), len(lengths) - 1
    again = kept.num_read_again(shared, min(lengths), len(lengths))
    return sum(lengths) - further * shared + again
