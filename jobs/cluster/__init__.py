"""The Ray session of a job.

``start`` starts Ray or connects to a cluster, ``session`` fits actors into nodes, ``blocks`` cuts
the work.
"""
