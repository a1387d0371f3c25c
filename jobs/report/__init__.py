"""Show results: as a page of HTML (``report``), or one unit on the terminal (``show``).

What enters: a ``Selection`` of rows, and gold if there is any. What leaves: the page, built from
the files in ``page/``. Read ``report``, then ``units``, which turns a row into JSON for the page;
``videos`` and ``runs`` do so for the table ``items`` and for ``run.json``.
"""
