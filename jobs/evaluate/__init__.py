"""Compare annotations with gold: ``reelscribe evaluate``.

What enters: an output, and a gold table (``gold``). What leaves: a ``Report``. Read ``evaluate``,
``match``, then ``metrics`` with ``figures`` and ``boxes``; ``slices`` groups rows, ``unit_scores``
scores single units.
"""
