"""Read an output, and compact it.

What enters: an output folder. What leaves: its rows (``read``, which lets ``latest`` choose), its
frames as the model saw them (``frames``), the answer to a query (``sql``, printed by
``query_rows``), a folder with fewer files (``compact``). ``media_roots`` says where media are that
moved since the run.
"""
