"""What a Qwen3-VL checkpoint determines: frame sizes, prompts, positions.

What enters: a checkpoint's configuration and tokenizer (``checkpoint``), frame sizes and times.
What leaves: resized sizes and numbers of vision tokens (``frame_size``), token ids (``prompter``),
pixels as patches (``patches``), M-RoPE positions (``positions``). Read in that order; ``sizes`` and
``memory`` predict the memory that a checkpoint takes.
"""
