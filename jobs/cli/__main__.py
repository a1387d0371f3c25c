"""``python -m jobs.cli``: the command ``reelscribe`` where its script is not on the PATH."""

from jobs.cli.main import main

main(prog_name="reelscribe")
