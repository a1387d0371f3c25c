"""Vectors by vLLM: its pooling runner takes the hidden state of a prompt's last token.

The state is that after the final norm, unscaled: the parser keeps its first numbers and scales it,
as for the engine transformers. Importing this module does not import vLLM.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pipeline.tasks.embedding import vector_text


def vector_args() -> dict[str, Any]:
    """The arguments with which vLLM embeds, and generates nothing."""
    from vllm.config import PoolerConfig

    return {
        "runner": "pooling",
        "convert": "embed",  # the checkpoint's class is one that generates
        "pooler_config": PoolerConfig(seq_pooling_type="LAST", use_activation=False),
    }


def vector_params() -> Any:
    """The parameters of a request, vLLM's ``PoolingParams``."""
    from vllm.pooling_params import PoolingParams

    return PoolingParams(task="embed", use_activation=False)


async def read_vector(stream: AsyncGenerator[Any, None], request: Any) -> tuple[str | None, int]:
    """Wait for a request's vector.

    stream: of vLLM's ``PoolingRequestOutput``.

    Returns the vector as an answer's text, None if vLLM reports an error, and the number of prompt
    tokens that it had in its cache.

    Raises:
        UnitError: vLLM read another prompt.
    """
    from pipeline.engines.vllm.inputs import check_read

    vector, num_cached = None, 0
    async with aclosing(stream):
        async for output in stream:
            if output.error is not None:
                return None, num_cached
            check_read(output.prompt_token_ids or (), request)
            num_cached = output.num_cached_tokens or num_cached
            vector = vector_text(output.outputs.data.float().cpu().numpy())
    return vector, num_cached
