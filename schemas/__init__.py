"""The data types that all rooms share: errors, table rows, tasks, conversations, job files.

Read ``errors``, and ``shown`` (what may be printed or written), then ``tables/`` (what is in the
manifest, the plan and the output), then ``task`` and ``conversation``, then ``job/`` (the job
file).
"""

import _reelscribe as _reelscribe
