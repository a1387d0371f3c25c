"""The Ray session of a job.

``small`` decides whether a job needs Ray. ``start`` starts Ray or connects to a cluster,
``session`` fits actors into nodes, ``gpus`` knows their GPUs, ``blocks`` cuts the work.
"""
