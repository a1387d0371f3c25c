"""The Ray session of a job: ``session`` fits actors into nodes, ``blocks`` cuts the work."""
