"""The runs in a folder, as `python -m viz runs` prints them."""

import time
from pathlib import Path

from common.formatting import format_bytes
from common.run_marker import training_command
from common.terminal_text import one_line
from viz.record.runs import FoundRun, checkpoint_files, record_files, shown_path, size_of

TABLE_COLUMNS = 100


def describe_runs(runs: list[FoundRun]) -> str:
    """Return a table for a terminal: below each run its state, its size on disk, and the command that resumes it."""
    if not runs:
        return f"No runs here. To start one: {training_command()} --test"
    rows = [("run", "started", "data", "model", "documents", "loss (last 200)"), *map(_cells, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[2] = max(min(widths[2], 12), widths[2] - max(0, sum(widths) + 2 * 5 - TABLE_COLUMNS))
    lines = []
    for row, run in zip(rows, [None, *runs], strict=True):
        cells = [
            text if len(text) <= width else f"{text[: width - 1]}…" for text, width in zip(row, widths, strict=True)
        ]
        aligned = [f"{text:{'>' if i > 3 else '<'}{widths[i]}}" for i, text in enumerate(cells)]
        lines.append("  ".join(aligned).rstrip())
        if run is not None:
            state = "running" if run.is_running else run.problem or run.outcome or "ended unexpectedly"
            why_not = "" if run.resume_command or run.is_running else f"; can't be resumed: {run.why_not}"
            kind = "a test run, " if run.is_test else ""
            lines.append(f"    {kind}{one_line(state)}; {format_bytes(run.bytes_on_disk)} on disk{why_not}")
            if run.resume_command is not None:
                lines.append(f"    resume: {run.resume_command}")
    return "\n".join(lines)


def _cells(run: FoundRun) -> tuple[str, ...]:
    started = "–" if run.started is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    documents = f"{run.documents:,}" + ("" if run.steps_asked is None else f" of {run.steps_asked:,}")
    loss = "–" if run.loss is None else f"{run.loss:.4f}"
    return (one_line(run.run_id) or "–", started, one_line(run.source), one_line(run.model), documents, loss)


def confirm_text(run: FoundRun) -> str:
    """Return the question before `delete_run`: the folders, files and sizes that it removes."""
    lines = [f"Delete run {one_line(run.run_id)} ({run.documents:,} documents, {format_bytes(run.bytes_on_disk)})?"]
    halves: dict[Path, list[Path]] = {}
    for path in [*record_files(run.record), *checkpoint_files(run.checkpoints, run.run_id)]:
        halves.setdefault(path.parent, []).append(path)
    for folder, files in halves.items():
        charts = [path for path in files if path.suffix == ".png"]
        listed = [path.name for path in files if path not in charts] + ([f"{len(charts)} charts"] if charts else [])
        if listed:
            lines.append(f"  {shown_path(folder.resolve())}: {', '.join(listed)} ({format_bytes(size_of(files))})")
    return "\n".join([*lines, "Other files in these folders are kept."])
