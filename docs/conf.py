"""How Sphinx makes a site of these pages: ``make docs``."""

from __future__ import annotations

from flexmigrate import __version__

project = "flexmigrate"
author = "flexmigrate contributors"
release = __version__

extensions = ["sphinx.ext.autodoc"]

# What is included in pages, and what is made here.
exclude_patterns = ["_build", "figures"]

# A reference to something that isn't there is a warning, and warnings are errors.
nitpicky = True
# Signatures name types of Twisted's, and of ours that are no part of the library.
nitpick_ignore_regex = [("py:.*", ".*")]

# Signatures as they stand in the code, with types beside the parameters' meaning.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
add_module_names = False
python_use_unqualified_type_names = True

# Nothing is fetched to build or to read them: no intersphinx, and a theme without fonts of others.
html_theme = "furo"
html_title = f"flexmigrate {release}"
html_copy_source = False
