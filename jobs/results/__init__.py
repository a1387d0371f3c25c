"""Read an output, and compact it.

What enters: an output folder. What leaves: its rows (``read``, which lets ``latest`` choose), its
frames as the model saw them (``frames``), the answer to a query (``sql``), a folder with fewer
files (``compact``).
"""
