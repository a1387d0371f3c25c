"""The command line: options in, exit codes and messages out.

``main`` is the group; ``run``, ``train``, ``results`` and ``output`` have a function for each
command, by subject; ``options`` has what they share, ``interrupts`` handles Ctrl-C. Heavy modules
are imported inside the functions, so that ``--help`` is quick.
"""
