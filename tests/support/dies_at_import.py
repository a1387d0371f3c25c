"""A module that no process can import, as one that is too large for the machine."""

import os
import signal

if os.environ.get("OF_ENGINE"):
    os.kill(os.getpid(), signal.SIGKILL)
