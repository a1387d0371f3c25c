"""One file for each task: its prompt, parser, typed column, drawing, simulated answer.

What enters: a ``Question`` and the model's raw answer. What leaves: a typed value that fits the
task's column. Read ``caption`` (the shortest), then ``objects``, then ``registry`` and ``parse``;
``answers/`` has the parts that tasks share.
"""
