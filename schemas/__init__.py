"""The nouns: what a manifest row, a unit, an annotation, a job file, a task and an error are."""
