"""Probe images and videos, and decode the planned frames.

What enters: an opened file. What leaves: header facts (``Media``), frames with their PTS.
Read ``container`` and ``probe``, then ``decode``, which calls ``pyav`` or ``torchcodec``;
``frame_walk`` finds the frame on display at a time, ``colour`` and ``resize`` make its pixels,
``missing_bytes`` proves that a file was cut short, ``shots`` finds cuts.
"""
