"""The manual: Markdown pages and an API reference from the docstrings, built by `make docs` without network."""

import llata_fast

project = "llata_fast"
author = "the llata_fast authors"
release = version = llata_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# pages that are files of the repository elsewhere, too, and link to their neighbours there
suppress_warnings = ["myst.xref_missing"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True

html_theme = "furo"
html_title = f"llata_fast {release}"
html_show_sphinx = False
