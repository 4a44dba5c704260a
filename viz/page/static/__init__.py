"""The files that the page loads: those in this folder, and Plotly from the installed wheel."""

from functools import cache
from importlib import metadata, resources

PAGE = "index.html"
PLOTLY = f"plotly-{metadata.version('plotly')}.min.js"
"""The version in the name lets browsers cache it permanently."""
MODULES = (
    "elements.js", "format.js", "api.js", "plots.js", "chart.js", "tokens.js", "reader.js", "lists.js", "sources.js",
    "samples.js", "probes.js", "compare.js", "settings.js", "state.js", "main.js",
)  # fmt: skip
"""The page's modules, each after those it imports."""
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Return name -> (content, media type) of every file; read once, by fixed names."""
    folder = resources.files(__name__)
    found = {name: (folder / name).read_bytes() for name in (PAGE, "style.css", *MODULES)}
    found[PAGE] = found[PAGE].replace(b"PLOTLY", PLOTLY.encode())
    found[PLOTLY] = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return {name: (content, _KINDS[name.rpartition(".")[2]]) for name, content in found.items()}
