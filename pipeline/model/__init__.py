"""What a checkpoint of Qwen3-VL or its family determines: frame sizes, prompts, positions.

What enters: a checkpoint's configuration and tokenizer (``checkpoint``), frame sizes and times.
What leaves: resized sizes and numbers of vision tokens (``frame_size``), token ids (``prompter``,
by what ``reasoning`` finds in the template), pixels as patches (``patches``), M-RoPE positions
(``positions``). Read in that order; ``sizes`` and ``memory`` predict a checkpoint's memory.
"""
