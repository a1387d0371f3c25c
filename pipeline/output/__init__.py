"""Write the table, one row for each unit, and read what is committed.

What enters: ``AnsweredUnit``s. What leaves: Parquet files. Read ``rows`` first, then ``table`` and
``seal``. ``file_names`` says where files are, ``run_file`` reads the files of runs, ``duplicates``
leaves one row a unit, ``listing`` says which names have known content or are gone, ``compact``
joins files, ``views`` are for SQL, ``stitch`` and ``summary`` make one row of a whole video.
"""
