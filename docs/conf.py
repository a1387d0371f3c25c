"""The documentation site: ``make site`` builds it from the pages beside this file."""

project = "Reelscribe"
author = "the Reelscribe authors"
extensions = ["myst_parser"]
exclude_patterns = ["*.json", "*.ipynb"]
myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]
html_theme = "furo"
html_title = "Reelscribe"
html_copy_source = False
html_show_sphinx = False
