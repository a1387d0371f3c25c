"""Events and metrics of a run: ``observer`` feeds ``log`` (JSON lines) and ``prometheus``."""
