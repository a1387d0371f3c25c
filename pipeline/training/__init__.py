"""Train the model on annotations, with the pipeline's own decoding and prompts.

What enters: conversations or tables of annotations, read by ``data``. What leaves: a checkpoint.
Read ``sample``, ``batches``, ``attention``, ``load``, ``optimizer``, ``train``; ``check`` finds
mistakes in the data, and ``memory`` predicts what a step takes.
"""
