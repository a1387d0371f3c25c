"""Checks that the model computes the same on a GPU as in float32 on a CPU.

`make test-gpu` (`python -m tests.gpu`) runs them on a GPU, without Ray, prints a table and writes
JSON. The ordinary tests run each of them on the CPU in a small size (`test_checks.py`). Read
`figures` first, then `scenes` (what the model sees), then a file of checks.
"""
