"""A run as one HTML file: the page with its data embedded, which needs no server and no network."""

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viz.page.answers import Answers
from viz.page.live_run import LiveRun, NoRun
from viz.page.other_runs import OtherRuns
from viz.page.query import NotThere
from viz.page.static import MODULES, PAGE, PLOTLY, page_files
from viz.record.reader import StoreReader
from viz.record.runs import record_of

POINTS = 1500
"""Width of the curves in pixels."""
LISTED = 100
"""Documents in each list; each of them can be opened in the report."""
SAMPLES, MOMENTS = 200, 24
PATH_KEYS = ("run", "folder", "shard", "source", "judged", "detail", "resume_command")
"""Keys of values that may contain paths."""


def make_report(folder: Path, others: Sequence[Path] = ()) -> bytes:
    """Return the HTML file (UTF-8). `others`: folders of other runs; the first is compared.

    Raises ValueError, with one line, if a run can't be read or compared.
    """
    live = LiveRun(folder)
    other_runs = OtherRuns(live, others)
    try:
        found = _answers(Answers(live), other_runs, others)
        # A report that is sent to others does not reveal the folders of this machine.
        places = {f"{live.record.resolve().parent}{os.sep}": "", f"{Path.home()}{os.sep}": f"~{os.sep}"}
        return _html(_renamed(found, {place: name for place, name in places.items() if len(place) > 1}))
    except (NoRun, NotThere) as error:
        raise ValueError(str(error)) from error


def _answers(answers: Answers, other_runs: OtherRuns, others: Sequence[Path]) -> dict[str, Any]:
    """Return the answers by the keys under which `static/api.js` looks them up."""
    run = answers.run()
    found: dict[str, Any] = {
        "made": time.time(),
        "run": run,
        "series": answers.series(points=POINTS),
        "sources": answers.sources(points=POINTS),
        "events": answers.events(1000),
        "spikes above": answers.spikes(LISTED),
        "spikes below": answers.spikes(LISTED, best=True),
        "samples": answers.samples(SAMPLES),
        "probes": answers.probes(),
        "runs": {"runs": []},
    }
    for number, asked in enumerate(found["samples"]["prompts"]):
        found[f"samples {number}"] = answers.samples(MOMENTS, asked["prompt"])
    if others:
        run_id = _run_id(others[0])
        found[f"compare {run_id}"] = other_runs.compare(run_id, POINTS)
        found[f"series {run_id}"] = other_runs.answers_of(run_id).series(points=POINTS)
        there = [one for one in other_runs.known() if one["run_id"] == run_id]
        found["runs"] = {"runs": [one | {"folder": "/".join(Path(one["folder"]).parts[-2:])} for one in there]}
    probed = {probe["step"] for probe in found["probes"]["probes"]}
    found |= {f"probes/{step}": answers.probe(step) for step in probed}
    steps = {entry["step"] for side in ("above", "below") for entry in found[f"spikes {side}"]["documents"]}
    steps |= probed | set(answers.judged()[-LISTED:])
    if run["steps"]:
        steps |= {run["first_step"], run["steps"] - 1}
    return found | {f"documents/{step}": answers.document(step) for step in sorted(steps)}


def _renamed(value: Any, places: Mapping[str, str], *, is_path: bool = False) -> Any:
    """Replace each path of `places` by its other name, in values that may contain paths but not in documents."""
    if isinstance(value, str) and is_path:
        for place, name in places.items():
            value = value.replace(place, name)
    elif isinstance(value, dict):
        return {key: _renamed(item, places, is_path=is_path or key in PATH_KEYS) for key, item in value.items()}
    elif isinstance(value, list):
        return [_renamed(item, places, is_path=is_path) for item in value]
    return value


def _run_id(folder: Path) -> str:
    with StoreReader(record_of(folder) / "run.db") as store:
        return str(store.run()["run_id"])


def _html(answers: dict[str, Any]) -> bytes:
    files = {name: content.decode("utf-8") for name, (content, _) in page_files().items()}
    plotly, program = _escaped(files[PLOTLY]), _escaped(bundle({name: files[name] for name in MODULES}))
    policy = (
        f"default-src 'none'; script-src {_digest(plotly)} {_digest(program)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    # `<` as \u003c: no text of a document can close the element.
    packed = json.dumps(answers, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = files[PAGE]
    for old, new in (
        (
            '<meta charset="utf-8">',
            f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
        ),
        ('<link rel="stylesheet" href="/style.css">', f"<style>\n{files['style.css']}</style>"),
        (f'<script src="/{PLOTLY}" defer></script>\n', ""),
        ('<script type="module" src="/main.js"></script>\n', ""),
        (
            "</body>",
            f'<script type="application/json" id="answers">{packed}</script>\n'
            f'<script>{plotly}</script>\n<script type="module">{program}</script>\n</body>',
        ),
    ):
        before, found, after = page.partition(old)
        assert found, f"{PAGE} has no {old!r}"
        page = before + new + after
    return page.encode("utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode()}'"


def _escaped(script: str) -> str:
    """Escape what would close the script element; it can only occur in strings and comments."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def bundle(modules: dict[str, str]) -> str:
    """Join modules, each after those it imports, into one: each becomes a function that returns its exports.

    An import must be `import { a, b } from "./x.js";` on one line; exports are named functions, classes or constants.
    """
    parts = []
    for name, source in modules.items():
        exported = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", source, flags=re.MULTILINE)
        body = re.sub(r'^import (\{.*\}) from "\./(\w+)\.js";$', r"const \1 = modules.\2;", source, flags=re.MULTILINE)
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        if stray := re.search(r"^(?:import|export)\b.*", body, flags=re.MULTILINE):
            raise AssertionError(f"{name}: {stray[0]}")
        parts.append(f"modules.{Path(name).stem} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();\n")
    return "const modules = {};\n" + "".join(parts)
