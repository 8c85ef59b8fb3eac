import importlib
import inspect
import re

project = "ai"
author = "The ai library contributors"
copyright = "2026, the ai library contributors"
version = release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
autosummary_generate = False  # the tables lead to the entries of their own page
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
default_role = "literal"  # docstrings use single backticks for code, as Markdown does

html_theme = "furo"
html_title = f"ai {version}"
html_logo = "_static/mark.svg"
pygments_dark_style = "github-dark"  # furo's own underlines what is imported
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/mark.svg"
templates_path = []

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style"), ("Sources", "notes_style")]

_ENTRY = re.compile(r"^\.\. auto(\w+):: ([\w.]+)\n(?:   :members:(.*)\n)?", re.MULTILINE)


def _names(kind, path, members):
    """The names that an entry of an API page documents, as the page shows them."""
    if kind != "module":
        return [path]
    if members is None:
        return []
    module = importlib.import_module(path)
    shown = [name.strip() for name in members.split(",") if name.strip()] or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and inspect.getmodule(value) is module
    ]
    return [f"{path}.{name}" for name in shown]


def _put_a_table_on_top(app, docname, source):
    """Begins each page of the API reference with a table of what is on it, a line each."""
    if not docname.startswith("api/"):
        return
    names = [name for entry in _ENTRY.finditer(source[0]) for name in _names(*entry.groups())]
    if len(names) > 1:
        title, _, rest = source[0].partition("\n")
        lines = "".join(f"   {name}\n" for name in names)
        table = f"```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{lines}```\n"
        source[0] = f"{title}\n\n{table}\n{rest}"


def setup(app):
    app.connect("source-read", _put_a_table_on_top)
