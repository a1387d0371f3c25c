"""Attention of the engine, against torch's own with one key head for each query head."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.engines.transformers.attention import bias, frames_attention, grouped_attention


def states(heads: int, length: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(heads * length)
    return torch.randn(2, heads, length, 16, generator=generator).to(dtype)


def plain(query, key, value, mask) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_the_last_query_sees_the_last_key_without_a_mask(key_heads, length):
    """A whole prompt, its later chunk, and a single token."""
    query, key, value = states(6, length), states(key_heads, 9), states(key_heads, 9) + 1
    causal = torch.ones(length, 9, dtype=torch.bool).tril(9 - length)
    found, _ = grouped_attention(torch.nn.Module(), query, key, value, None, is_causal=True)
    torch.testing.assert_close(found, plain(query, key, value, causal))


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_a_bias_is_the_mask_for_all_heads(key_heads):
    query, key, value = states(6, 4), states(key_heads, 9), states(key_heads, 9) + 1
    mask = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[:, :, 0] = True
    made = bias(mask, torch.float32, 6 // key_heads)
    found, _ = grouped_attention(torch.nn.Module(), query, key, value, made)
    torch.testing.assert_close(found, plain(query, key, value, mask[:, None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_sees_nothing_is_finite(dtype):
    mask = torch.zeros(2, 4, 9, dtype=torch.bool)
    query, key, value = (states(heads, n, dtype) for heads, n in ((6, 4), (2, 9), (2, 9)))
    found, _ = grouped_attention(torch.nn.Module(), query, key, value, bias(mask, dtype, 3))
    assert torch.isfinite(found).all()


def test_frames_see_themselves_only():
    query, key, value = (states(3, 20)[:1] + k for k in range(3))
    runs = [(2, 4), (1, 6), (3, 2)]
    found, _ = frames_attention(torch.nn.Module(), query, key, value, frames=runs)
    lengths = [length for num, length in runs for _ in range(num)]
    parts = [each.split(lengths, dim=2) for each in (query, key, value)]
    expected = [
        scaled_dot_product_attention(*part).transpose(1, 2) for part in zip(*parts, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
