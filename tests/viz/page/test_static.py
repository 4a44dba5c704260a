"""The files of the page as they stand: no browser is needed to see that they hold together."""

import re
from pathlib import Path

import pytest

from viz.charts.style import DARK, LIGHT, Palette
from viz.page import static
from viz.page.static import MODULES, PAGE, PLOTLY

FOLDER, KINDS = Path(static.__file__).parent, (".html", ".css", ".js")
FILES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.suffix in KINDS}


def named_in(style: str, selector: str) -> list[dict[str, str]]:
    """The variables of each rule with this selector."""
    rules = re.findall(rf"(?:^|[}}{{/])\s*{re.escape(selector)} \{{([^}}]*)\}}", style)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", rule)) for rule in rules]


def colours_of(palette: Palette) -> dict[str, str]:
    parts = ("paper", "ink", "quiet", "rule", "data", "main", "second", "held_out", "bad")
    named = {part.replace("_", "-"): getattr(palette, part) for part in parts}
    return named | {f"source-{place}": colour for place, colour in enumerate(palette.sources)}


@pytest.mark.parametrize(
    ("palette", "selectors"),
    [(LIGHT, [":root"]), (DARK, [':root:not([data-theme="light"])', ':root[data-theme="dark"]'])],
    ids=["light", "dark"],
)
def test_the_colours_are_those_of_the_pictures(palette: Palette, selectors: list[str]) -> None:
    for selector in selectors:
        (found,) = named_in(FILES["style.css"], selector)
        expected = colours_of(palette)
        assert {name: found.get(name) for name in expected} == expected


def test_each_variable_of_one_theme_is_in_the_other() -> None:
    names = [
        found.keys()
        for selector in (":root", ':root:not([data-theme="light"])', ':root[data-theme="dark"]')
        for found in named_in(FILES["style.css"], selector)
    ]
    assert len(names) == 3 and names[0] == names[1] == names[2]


def test_every_variable_that_is_used_is_there() -> None:
    known = named_in(FILES["style.css"], ":root")[0].keys()
    used = {name for text in FILES.values() for name in re.findall(r"var\(--([\w-]+)\)", text)}
    asked = {name for text in FILES.values() for name in re.findall(r'\bcolour\("([\w-]+)"\)', text)}
    assert used and asked and used | asked <= known


def imports(name: str) -> list[str]:
    return re.findall(r'^(?:import|export)\b[^;]*?from "\./([\w.]+)";', FILES[name], flags=re.MULTILINE)


def test_every_module_is_served_after_those_that_it_imports() -> None:
    assert set(FILES) == {*MODULES, PAGE, "style.css"}
    for place, name in enumerate(MODULES):
        assert set(imports(name)) <= set(MODULES[:place]), name
    assert set(imports("main.js")) >= {"api.js", "chart.js"}  # the pattern sees them


MARKUP = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|createContextualFragment|DOMParser|srcdoc)\b"
    r"|\bdocument\s*\.\s*write|\beval\s*\(|\bnew\s+Function\b|\bsetTimeout\(\s*[\"'`]|javascript:",
)
ELSEWHERE = re.compile(r"(?:https?:)?//[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody asks for


@pytest.mark.parametrize("name", FILES)
def test_no_file_makes_markup_or_code_of_text_nor_names_another_place(name: str) -> None:
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


def test_no_handler_stands_in_the_page() -> None:
    """The policy allows no script in the page, and a handler in an attribute is one."""
    assert re.findall(r"<[^>]*\son\w+=", FILES[PAGE]) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", FILES[PAGE]) == []
    assert f'src="/{PLOTLY}"' in static.page_files()[PAGE][0].decode()
