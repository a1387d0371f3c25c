"""Read what the user wants annotated.

What enters: a manifest (Parquet, JSON lines, CSV) or a folder to scan. What leaves: ``MediaItem``s.
Read ``select`` first, which calls ``read`` or ``listing``; then ``formats`` (bytes to rows,
with ``parquet_values``), ``items`` and ``messages`` (rows to items, with ``values`` and ``uris``).
``existing`` finds the media that are in the output table (``existing_rows`` reads it), ``write``
writes manifests.
"""
