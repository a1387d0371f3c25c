"""Count the parameters and the states of layers that only hybrid models have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHUNK_TOKENS = 64
"""Tokens that a linear layer reads at a time; the last chunk of a sequence is padded."""

_FLOAT32_BYTES, _ID_BYTES = 4, 8

_LIVE_BYTES = {"key": 0.75, "expanded_key": 21.4, "value": 19.2, "chunk": 13.0}
"""Live bytes of a token at a time, by channels of the keys, of the keys for each value head, of the
values, and by tokens of a chunk and value heads. Counted with torch's profiler, and fitted."""

_STEP_STATES = 4
"""Copies of a layer's state that a decoding step makes."""


@dataclass(frozen=True, kw_only=True)
class LinearSize:
    """Size of a linear layer: a gated delta net.

    width: of the hidden states. key_heads, value_heads: their numbers; key_width, value_width: of
    one head. kernel: tokens that the convolution sees.

    Source: gated delta networks, arXiv 2412.06464.
    """

    width: int
    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int = 4

    @classmethod
    def of(cls, text: Mapping[str, Any]) -> "LinearSize":
        """Read the size from a language model's configuration.

        Raises:
            KeyError: a size is missing, which transformers' configuration class fills in.
        """
        return cls(
            width=text["hidden_size"],
            key_heads=text["linear_num_key_heads"],
            value_heads=text["linear_num_value_heads"],
            key_width=text["linear_key_head_dim"],
            value_width=text["linear_value_head_dim"],
            kernel=text["linear_conv_kernel_dim"],
        )

    @property
    def projections(self) -> int:
        """Weights of the projections, without those of the two gates of each head."""
        return self.width * (self._convolved + 2 * self.value_heads * self.value_width)

    @property
    def other_parameters(self) -> int:
        """The gates of heads, the convolution, how fast states fade, and the norm."""
        gates = 2 * self.width * self.value_heads
        return gates + self._convolved * self.kernel + 2 * self.value_heads + self.value_width

    @property
    def parameters(self) -> int:
        """All parameters of the layer, without its MLP."""
        return self.projections + self.other_parameters

    def state_bytes(self, value_bytes: int) -> int:
        """Bytes of a sequence's state: inputs of the convolution, and the recurrence in float32."""
        recurrent = self.value_heads * self.key_width * self.value_width
        return self._convolved * self.kernel * value_bytes + recurrent * _FLOAT32_BYTES

    def activation_bytes(self, value_bytes: int) -> int:
        """Bytes of a token in a pass, in transformers' own functions: they compute in float32.

        The kernels of ``flash-linear-attention`` take less.
        """
        key, value = self.key_heads * self.key_width, self.value_heads * self.value_width
        counts = {
            "key": key,
            "expanded_key": self.value_heads * self.key_width,
            "value": value,
            "chunk": self.value_heads * CHUNK_TOKENS,
        }
        in_float32 = sum(count * _LIVE_BYTES[name] for name, count in counts.items())
        return math.ceil(in_float32) + 2 * (self.width + key + value) * value_bytes

    def step_bytes(self, value_bytes: int) -> int:
        """Bytes of a decoding step of one sequence."""
        return _STEP_STATES * self.state_bytes(value_bytes)

    @property
    def _convolved(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


@dataclass(frozen=True, kw_only=True)
class StreamSize:
    """What a model with several residual streams (``qwen4_exp``) has beside its layers.

    parameters: of what mixes the streams, of what chooses keys, and of embeddings of n-grams.
    table: those of the parameters that are in tables of n-grams, of which a token reads some rows.
    index_width: values of the key of a token by which a full layer chooses it.
    conv_values, ids: of a sequence's state.

    Source: ``Qwen4ExpTextModel`` of transformers.
    """

    parameters: int
    table: int
    index_width: int
    conv_values: int
    ids: int

    @classmethod
    def of(cls, text: Mapping[str, Any], num_full: int) -> "StreamSize":
        """Read the size from a language model's configuration.

        num_full: its full layers.

        Raises:
            KeyError: a size is missing, which transformers' configuration class fills in, or one
                of the indexer, for which it has no default.
        """
        width, streams = text["hidden_size"], text["hc_count"]
        joined = width * streams
        mixer = joined * (1 + 2 * text["hc_lowrank"])
        mixers = text["num_hidden_layers"] * 2 * (mixer + joined * streams) + mixer
        index_width = _given(text, "indexer_head_dim")
        heads = _given(text, "indexer_n_heads") + _given(text, "indexer_kv_heads")
        indexers = num_full * (width * heads * index_width + 2 * index_width)
        own = text["ple_embed_dim"] or width
        num_ngrams = len(set(text.get("ple_layer_ids") or ()))
        of_layer = own * (joined + width) + joined * (3 + text["ple_conv_kernel_size"])
        table = sum(_table_rows(text, k) for k in range(num_ngrams)) * (own // _num_heads(text))
        seen = (text["ple_conv_kernel_size"] - 1) * text["ngram_size"]
        return cls(
            parameters=mixers + indexers + num_ngrams * of_layer + table,
            table=table,
            index_width=index_width,
            conv_values=num_ngrams * joined * seen,
            ids=num_ngrams * (text["ngram_size"] - 1),
        )

    def state_bytes(self, value_bytes: int) -> int:
        """Bytes of a sequence's state, beside those of linear layers."""
        return self.conv_values * value_bytes + self.ids * _ID_BYTES


def in_chunks(num_tokens: int, length: int) -> int:
    """Tokens that linear layers read for sequences of a length: their last chunks are padded.

    num_tokens: of all sequences together.
    """
    length = max(1, length)
    return num_tokens // length * math.ceil(length / CHUNK_TOKENS) * CHUNK_TOKENS


def _given(text: Mapping[str, Any], name: str) -> int:
    """A size that transformers' class leaves at None if the configuration does not have it."""
    if text.get(name) is None:
        raise KeyError(f"text_config.{name}")
    return int(text[name])


def _num_heads(text: Mapping[str, Any]) -> int:
    return int((text["ngram_size"] - 1) * text["heads_per_ngram"])


def _table_rows(text: Mapping[str, Any], layer: int) -> int:
    """Rows of a layer's table of n-grams: a prime number for each head, padded together.

    layer: of those with n-grams, counted from 0. The primes go on from layer to layer.
    """
    heads, base = _num_heads(text), text["ngram_vocab_size_base"]
    primes = _primes_from(base, (layer + 1) * heads)
    divisor = int(text["make_ngram_vocab_size_divisible_by"])
    return math.ceil(sum(primes[layer * heads :]) / divisor) * divisor


def _primes_from(start: int, count: int) -> list[int]:
    primes: list[int] = []
    number = max(2, start)
    while len(primes) < count:
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            primes.append(number)
        number += 1
    return primes
