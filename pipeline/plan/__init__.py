"""Plan media items: units with exact token counts, before their frames are decoded.

What enters: a ``MediaItem``. What leaves: ``Unit``s. Read ``planner`` first, then ``sampler``
(frame times and sizes) and ``segment`` (time spans, frame counts). ``recipe`` has all settings that
determine answers, and their hash.
"""
