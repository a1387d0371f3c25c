"""The rows of every table, each declared once, as a dataclass whose annotations carry the columns.

Read ``columns`` first, with which rows are declared, then in the order of processing: ``manifest``
(what the user gives), ``media`` (header facts and frames), ``unit`` (planned, prepared, answered),
``error``, ``annotation`` (a row of the output), ``item`` (a whole video),
``listing`` (names with known content, and gone ones).
"""
