"""Output of commands: text that is safe to print, progress, and checks of output paths."""
