"""Train the model on annotations, with the pipeline's own decoding and prompts.

What enters: conversations or tables of annotations. What leaves: a checkpoint. Read ``read``,
``sample``, ``pack``, ``batches``, ``load``, ``optimizer``, ``train``; ``check`` and
``answer_boxes`` find mistakes in the data.
"""
