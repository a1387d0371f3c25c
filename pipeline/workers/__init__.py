"""Processes that work for a stage, and how the stage survives their death.

``child_process`` runs a decoder in a child that ``forker`` forks, with ``shared_memory`` for the
frames. ``engine_guard`` limits the damage of an engine's death to one unit. ``engine_process``
holds an engine without Ray.
``code_version`` compares the code of driver and workers.
"""
