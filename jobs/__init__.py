"""What a person runs: the command ``reelscribe`` and the Python API.

``cli`` has the commands, ``api`` the functions for notebooks; each command has a module in the room
of its subject. Read ``cli/run``, then ``plan/plan``, then ``run/annotate``.
"""

import _reelscribe as _reelscribe
