"""The job file: pydantic models with a message for each mistake.

What enters: YAML or a dict. What leaves: a checked ``Job`` or ``FinetuneJob``.
Read ``job`` first, then its sections: ``model``, ``sampling``, ``generation``, ``task_spec``,
``resources``, ``limits``. ``load`` reads files, ``json_schema`` is for editors.
"""
