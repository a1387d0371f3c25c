"""Open a job and plan it: ``reelscribe plan``.

What enters: a ``Job``. What leaves: a ``JobContext`` and the run's plan, a table of UNIT rows. Read
``open_job`` first, then ``plan_file`` and ``probe``. ``runs`` reads and writes run.json,
``listing`` records names whose content is known, ``secrets`` keeps signed urls out of the plan
file, ``print_plan`` prints, ``gpu_memory`` says what fits into a GPU.
"""
