"""Configure Sphinx: `make docs` builds the site from the pages, the docstrings and the notebooks.

Nothing is loaded from a network, neither by the build nor by the pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import pyro_seq  # noqa: E402

project = "pyro_seq"
author = "the pyro_seq authors"
version = release = pyro_seq.__version__
copyright = author

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_design",
    "mathml",
    "docstrings",
    "reference_pages",
    "repository_links",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_ext", "_static"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:class", r"(?!pyro_seq\.).*"),  # of other packages, or names for type checkers only
    (r"py:(class|obj)", r"pyro_seq\..*\.([A-Z]|_\w+)"),  # type variables; private bases
    (r"py:class", r"pyro_seq\.distributions\.kalman\.Transition"),  # another name of a type
]

# pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# notebooks: run by the build, kept between builds as long as neither they nor the package change
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_timeout = 180  # seconds a cell
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress, and warnings that bars of progress have no widgets
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # would be loaded from a network

# the reference
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_use_param = False  # an item may name several parameters
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

# looks
html_theme = "furo"
html_title = f"pyro_seq {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "monokai"
