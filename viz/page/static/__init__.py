"""The files of the page: those in `page/`, and Plotly out of the installed wheel. Read once, by fixed names."""

from functools import cache
from importlib import metadata, resources

PAGE = "index.html"
PLOTLY = f"plotly-{metadata.version('plotly')}.min.js"
"""With its version, so that a browser may keep it."""
MODULES = (
    "elements.js", "format.js", "api.js", "plots.js", "chart.js", "tokens.js", "reader.js", "lists.js", "sources.js",
    "samples.js", "probes.js", "compare.js", "settings.js", "state.js", "main.js",
)  # fmt: skip
"""Those of the page, each after those that it imports from."""
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and media type of everything that the page loads from its server."""
    folder = resources.files(__name__)
    found = {name: (folder / name).read_bytes() for name in (PAGE, "style.css", *MODULES)}
    found[PAGE] = found[PAGE].replace(b"PLOTLY", PLOTLY.encode())
    found[PLOTLY] = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return {name: (content, _KINDS[name.rpartition(".")[2]]) for name, content in found.items()}
