"""The stages of the pipeline: one file for each class that Ray runs as actors.

``graph`` chains them on one screen: read it first, then ``plan``, ``prepare``, ``generate``,
``commit``, ``summarise``. ``here`` chains them in one process, for small jobs. Each takes one
Arrow batch and returns one or several. ``reask`` generates answers again that could not be parsed.
"""
