"""Train a model, and check training data.

What enters: a training job. What leaves: a checkpoint, or a report. Read ``finetune``,
``job_checks`` (before the start), ``launch`` (Ray Train), ``worker`` (in its processes); then
``check_dataset``, ``box_units``, ``check_report``.
"""
