"""Read training data: conversations of the reference's format, or tables of annotations.

What enters: a data set of the job file. What leaves: conversations, and problems that name their
row. Read ``read``, ``annotations``, ``conversations``; ``examples`` is what both share, and
``answer_boxes`` finds boxes in answers.
"""
