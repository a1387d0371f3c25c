"""Run a planned job: ``annotate``, ``retry``, ``calibrate``, ``scan``.

What enters: a ``Job``. What leaves: the output table and a finished ``Run``. Read ``annotate``,
then ``driver`` and ``finish``. ``units`` decides what is left to do, ``lease`` keeps other drivers
out, ``sealing`` seals shards, ``items`` writes the rows of whole videos, ``on_finish`` notifies a
scheduler.
"""
