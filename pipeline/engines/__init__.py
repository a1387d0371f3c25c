"""Answer units with the model.

What enters: ``PreparedUnit``s (frames and token ids). What leaves: ``AnsweredUnit``s (raw texts).
Read ``base`` first, then ``transformers/``, ``vllm/`` and ``simulated/``. ``grammar`` and
``token_sampling`` decide which token comes next, ``speed`` estimates times.
"""
