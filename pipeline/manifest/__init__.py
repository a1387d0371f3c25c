"""Read what the user wants annotated.

What enters: a manifest (Parquet, JSON lines, CSV) or a folder to scan. What leaves: ``MediaItem``s.
Read ``select`` first, which calls ``read`` or ``listing``, and ``kept``; then ``formats`` (a file
to rows), ``items`` and ``messages`` (rows to items, with ``values`` and ``uris``), ``distinct``.
``existing`` finds the media that are in the output table (``existing_rows`` reads it), ``write``
writes manifests.
"""
