"""Read and write objects on disk, S3, GCS, Azure and https.

What enters: a uri. What leaves: bytes, files that read ranges, listings; errors of a stable type.
Read ``storage`` first, then ``media_file`` and ``listing``, which it calls, and ``errors``, which
gives each failure its error type. ``parquet`` and ``ids`` serve the later rooms.
"""
