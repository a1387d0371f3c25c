"""``reelscribe doctor``: a page that says whether this machine or cluster can run a job.

In: a job, or none. Out: findings, each ok, a warning, or what to do; an exit code. ``facts`` runs
on each machine and reports in JSON lines; ``judge`` makes findings of that; ``storage``, ``model``
and ``settings`` check what the job names. Read ``finding`` first, then ``doctor``.
"""
