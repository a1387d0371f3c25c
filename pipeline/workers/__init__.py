"""Processes that work for a stage, and how the stage survives their death.

``isolated_decoder`` decodes media in children. ``child_process`` calls functions in them, within
``child_limits``; ``start_forker`` starts the process that forks them, ``forker`` runs in it, and
``shared_memory`` has the frames. ``engine_guard`` limits the damage of an engine's death to one
unit. ``engine_process`` holds an engine without Ray. ``code_version`` compares the code of driver
and workers, ``free_memory`` reads how much memory is left.
"""
