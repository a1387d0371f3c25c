"""The engine on transformers, with its own decoding loop.

What enters: prepared units. What leaves: answered units. Read ``engine`` (batches, errors), then
``generator`` (one batch through the model), ``batches`` and ``limit`` (which units go together),
``branches`` (several prompts behind one shared prefix), ``attention`` and ``load``.
"""
