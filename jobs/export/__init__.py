"""Write results in the formats of other tools, and read corrected labels back.

What enters: a ``Source`` of rows. What leaves: names and contents of files. Read ``export``, which
has the table of formats, then one file for each family of formats.
"""
