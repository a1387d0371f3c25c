"""The engine on transformers, with its own decoding loop.

What enters: prepared units. What leaves: answered units. Read ``engine`` (batches, errors), then
``generator`` (one batch through the model) and its parts in their order: ``batches`` and ``limit``
(which units go together), ``vision``, ``prefix``, ``branches`` (several prompts behind one shared
prefix), ``decoding``; then ``attention``, ``cache`` (keys and values, and states of linear layers)
and ``load``.
"""
