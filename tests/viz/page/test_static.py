"""Consistency checks of the page's files that need no browser."""

import re
from pathlib import Path

import pytest

from viz.charts.style import DARK, LIGHT, Palette
from viz.page import static
from viz.page.static import MODULES, PAGE, PLOTLY

FOLDER, KINDS = Path(static.__file__).parent, (".html", ".css", ".js")
FILES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.suffix in KINDS}


def named_in(style: str, selector: str) -> list[dict[str, str]]:
    """Return the variables of each rule with this selector."""
    rules = re.findall(rf"(?:^|[}}{{/])\s*{re.escape(selector)} \{{([^}}]*)\}}", style)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", rule)) for rule in rules]


def colours_of(palette: Palette) -> dict[str, str]:
    parts = ("paper", "ink", "quiet", "rule", "data", "main", "second", "held_out", "bad")
    named = {part.replace("_", "-"): getattr(palette, part) for part in parts}
    return named | {f"source-{place}": colour for place, colour in enumerate(palette.sources)}


def test_each_theme_defines_all_used_variables_with_the_colours_of_the_charts() -> None:
    (light,) = named_in(FILES["style.css"], ":root")
    for selector, palette in (
        (":root", LIGHT), (':root:not([data-theme="light"])', DARK), (':root[data-theme="dark"]', DARK)
    ):  # fmt: skip
        (found,) = named_in(FILES["style.css"], selector)
        assert found.keys() == light.keys() and found == found | colours_of(palette)
    used = {name for text in FILES.values() for name in re.findall(r"var\(--([\w-]+)\)", text)}
    asked = {name for text in FILES.values() for name in re.findall(r'\bcolour\("([\w-]+)"\)', text)}
    assert used and asked and used | asked <= light.keys()


def imports(name: str) -> list[str]:
    return re.findall(r'^(?:import|export)\b[^;]*?from "\./([\w.]+)";', FILES[name], flags=re.MULTILINE)


def test_modules_are_listed_after_those_they_import() -> None:
    assert set(FILES) == {*MODULES, PAGE, "style.css"}
    for place, name in enumerate(MODULES):
        assert set(imports(name)) <= set(MODULES[:place]), name
    assert set(imports("main.js")) >= {"api.js", "chart.js"}  # control: the pattern finds them


MARKUP = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|createContextualFragment|DOMParser|srcdoc)\b"
    r"|\bdocument\s*\.\s*write|\beval\s*\(|\bnew\s+Function\b|\bsetTimeout\(\s*[\"'`]|javascript:"
)
ELSEWHERE = re.compile(r"(?:https?:)?//[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody asks for


@pytest.mark.parametrize("name", FILES)
def test_no_file_turns_text_into_markup_or_names_another_host(name: str) -> None:
    text = FILES[name].replace(NAMESPACE, "")
    assert MARKUP.findall(text) == [] and ELSEWHERE.findall(text) == []
    assert "@import" not in text and "url(" not in text


def test_control_the_patterns_find_what_they_are_for() -> None:
    for bad in (
        "box.innerHTML = text", "document.write(x)", "eval(x)", "new Function(x)", "x.insertAdjacentHTML('a', b)",
        "a.outerHTML=b", 'setTimeout("x", 1)',
    ):  # fmt: skip
        assert MARKUP.search(bad), bad
    for bad in ("https://cdn.plot.ly/x.js", "//fonts.example.org/a", "HTTP://a.b"):
        assert ELSEWHERE.search(bad), bad
    assert not ELSEWHERE.search("a comment  // like this one")


def test_the_page_has_no_inline_script() -> None:
    """The policy forbids inline scripts, which include handlers in attributes."""
    assert re.findall(r"<[^>]*\son\w+=", FILES[PAGE]) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", FILES[PAGE]) == []
    assert f'src="/{PLOTLY}"' in static.page_files()[PAGE][0].decode()
