"""Parts of answers that tasks share: how to read, write, draw and simulate them.

What enters: text that a model wrote, which may be hostile or broken. What leaves: typed values with
notes on repairs. Read ``read_json``, then ``times``, ``boxes``, ``intervals``, ``named_places`` and
``labelled_places``, then ``simulate``.
"""
