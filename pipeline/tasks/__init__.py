"""One file per task: its prompt, its parser, its typed column."""
