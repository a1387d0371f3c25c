"""Read a manifest file into rows of Python values: Parquet, JSON lines or CSV.

What enters: a local file. What leaves: ``Rows``, which are read as often as they are wanted, in
batches: memory does not grow with the file. An error in the file is raised here, with its line.
Read ``rows`` first, then ``text`` and ``parquet`` (with ``parquet_values``); ``readers`` has the
formats by their extension.
"""
