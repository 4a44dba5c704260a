"""The answers about a run, compared with numbers computed here independently."""

import fcntl
import json
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.conftest import Metrics, write_store
from tests.viz.page.test_http import ugly_run
from tests.viz.small_tokenizers import MODELS, encode
from viz.page.answers import MOST_STEPS_OF_KIND, Answers
from viz.page.api import QUERIES, Service
from viz.page.live_run import LiveRun
from viz.page.query import NotThere, Query
from viz.record.schema import rows_of
from viz.record.writer import StoreWriter
from viz.stats.series import FEWEST_OF_SOURCE

WARMUP, STEPS = 50, 120
SPIKES = {41: 9.0, 60: 3.0, 75: 4.0, 90: 1.5, 101: 0.5}  # of the step: nats above the others of its source
BEST = {52: -2.0, 77: -1.0}


def answers_of(folder: Path) -> Answers:
    return Answers(LiveRun(folder, fresh_seconds=0))


def strict(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer as a browser receives it."""
    found: dict[str, Any] = json.loads(json.dumps(answer, allow_nan=False))
    return found


def average(values: Sequence[float], window: int = 200) -> float:
    """The formula of `DebiasedAverage`."""
    share, total, count = 2 / (window + 1), 0.0, 0
    for value in values:
        if math.isfinite(value):
            total, count = (1 - share) * total + share * value, count + 1
    return total / (1 - (1 - share) ** count) if count else math.nan


def source_of(step: int) -> str:
    return ("hard", "easy")[step % 2]


def loss_of(step: int) -> float:
    return (8.0, 2.0)[step % 2] + (SPIKES | BEST).get(step, 0.0)


def usual_of(step: int) -> float:
    return average([loss_of(other) for other in range(step) if source_of(other) == source_of(step)])


def add_events(folder: Path, *events: tuple[int, str, str]) -> None:
    """Add events (step, kind, detail) to the record of a run."""
    writer = StoreWriter(folder / "run.db", {}, resume=True)
    for step, kind, detail in events:
        writer.add("events", {"time": 5.0 + step, "step": step, "kind": kind, "detail": detail})
    writer.close()


@pytest.fixture
def run(tmp_path: Path, metrics: Metrics) -> Path:
    """120 documents of two sources whose losses differ, with spikes, prompts, events and evaluations."""
    about = {"run_id": "r1", "config": {"warmup_steps": WARMUP, "num_steps": 240}, "tokenizer": MODELS["ours"]}
    writer = StoreWriter(tmp_path / "run.db", about)
    for step in range(STEPS):
        ids = encode(f"one two  three {step}\n" + "four " * 40)
        own = {"prompt": f"p{step}", "reference": "r"} if step % 10 == 0 else {}
        answer = metrics(
            step, loss=loss_of(step), source=source_of(step), tokens=10 + step, token_ids=ids,
            token_losses=[float(place) for place in range(len(ids) - 1)], token_ranks=list(range(len(ids) - 1)), **own,
        )  # fmt: skip
        writer.add_rows(rows_of(answer, "in" if own else "", f"out {step}" if own else ""))
        if step % 10 == 0:
            writer.add_rows(rows_of({"step": step, "prompt": "asked"}, "asked", f"again {step}"))
    for step in (39, 79, 119):
        for split in ("held-out", "train"):
            about_split = {"split": split, "loss": step / 10, "accuracy": 0.5, "bits_per_byte": math.nan}
            writer.add("evaluations", {"step": step, "source": "", **about_split})
    writer.close()
    add_events(
        tmp_path, (30, "checkpoint", "a"), (45, "resume", "b"), (60, "spike", "loss 11.0, usual 8.0"),
        (75, "skipped update", "gradient"), (60, "checkpoint", "c"),
    )  # fmt: skip
    return tmp_path


def test_the_run(run: Path) -> None:
    answer = strict(answers_of(run).run())
    assert answer["state"] == "stopped"
    assert (answer["first_step"], answer["steps"], answer["steps_asked"]) == (0, 120, 240)
    assert answer["seconds_left"] is None  # it is not running
    assert answer["folder"] == str(run)
    assert answer["latest"]["loss"] == pytest.approx(average([loss_of(step) for step in range(STEPS)]), rel=1e-5)
    assert answer["latest"]["accuracy"] == 0.25
    throughput = average([10 + step for step in range(STEPS)]) / average([0.05] * STEPS)
    assert answer["latest"]["throughput"] == pytest.approx(throughput, rel=1e-5)
    assert answer["latest"]["waited_share"] == pytest.approx(0.001 / 0.05)
    assert answer["verdict"].startswith("Loss 5.")
    assert "1 update skipped" in answer["verdict"] and "1 spike" in answer["verdict"]
    assert answer["run"]["run_id"] == "r1" and answer["run"]["config"]["warmup_steps"] == WARMUP
    assert "tokenizer" not in answer["run"] and "id" not in answer["run"]
    assert answer["repeats_from"] is None
    with (run / ".run.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = strict(answers_of(run).run())
    assert answer["state"] == "running" and answer["seconds_left"] == pytest.approx(120 * 0.05)


def test_the_state_of_an_ended_run_and_of_one_without_steps(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    answers = answers_of(tmp_path)
    answer = strict(answers.run())
    assert answer["state"] == "stopped, no steps" and answer["steps"] == 0 and answer["first_step"] is None
    assert set(answer["latest"].values()) == {None}
    empty = strict(answers.series())
    assert empty["lanes"] == {} and empty["documents"] == 0 and empty["steps"] == 0
    for answer, key in (("sources", "sources"), ("spikes", "documents"), ("samples", "samples"), ("events", "events")):
        assert strict(getattr(answers, answer)())[key] == []
    with pytest.raises(NotThere, match="no steps yet"):
        answers.document(0)
    writer.add_rows(rows_of(metrics(0)))
    writer.update_run(ended=5.0, outcome="done")
    writer.close()
    assert strict(answers.run())["state"] == "ended"


def test_curves_and_averages_of_a_range(run: Path) -> None:
    answer = strict(answers_of(run).series(20, 100, window=10))
    assert [answer[name] for name in ("from", "to", "steps", "documents", "window")] == [20, 100, 120, 80, 10]
    loss = answer["lanes"]["loss"]
    assert loss["steps"] == list(range(20, 100))
    assert loss["values"] == [loss_of(step) for step in range(20, 100)]
    assert loss["not_finite"] == []
    for step, value in zip(loss["average"]["steps"], loss["average"]["values"], strict=True):
        assert value == pytest.approx(average([loss_of(one) for one in range(step + 1)], 10), rel=1e-5)
    assert len(loss["average"]["error"]) == len(loss["average"]["steps"])
    assert all(error > 0 for error in loss["average"]["error"])
    assert set(answer["lanes"]) == {"loss", "accuracy", "throughput", "learning_rate", "gradient_norm"}
    assert "average" not in answer["lanes"]["learning_rate"]
    assert answer["lanes"]["learning_rate"]["values"][0] == pytest.approx(20e-6)
    assert answer["evaluations"] == [
        {"step": step, "split": split, "loss": step / 10, "accuracy": 0.5, "bits_per_byte": None}
        for split in ("held-out", "train") for step in (39, 79)
    ]  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_few_points_still_include_every_spike_with_its_step(run: Path, log: bool) -> None:
    answer = strict(answers_of(run).series(points=20, log=log))["lanes"]["loss"]
    assert len(answer["steps"]) <= 42
    assert answer["steps"][0] == 0 and answer["steps"][-1] == 119
    shown = dict(zip(answer["steps"], answer["values"], strict=True))
    assert shown[41] == 11.0 and shown[60] == 11.0
    assert all(value == loss_of(step) for step, value in shown.items())


@pytest.mark.parametrize(("first", "below"), [(500, None), (20, 10)])
def test_an_empty_range_has_no_documents(run: Path, first: int, below: int | None) -> None:
    answer = strict(answers_of(run).series(first, below))
    assert answer["documents"] == 0 and answer["evaluations"] == []
    assert all(lane["steps"] == lane["values"] == [] for lane in answer["lanes"].values()) and "loss" in answer["lanes"]


def test_spikes_are_ordered_by_distance_above_their_source(run: Path) -> None:
    answer = strict(answers_of(run).spikes())
    assert answer["from"] == WARMUP
    assert [one["step"] for one in answer["documents"]][:4] == [75, 60, 90, 101]
    # These are followed by some slightly above an average that a low document pulled down.
    for one in answer["documents"]:
        step = one["step"]
        assert one["source"] == source_of(step) and one["loss"] == loss_of(step)
        assert one["usual"] == pytest.approx(usual_of(step), rel=1e-5)
        assert one["excess"] == pytest.approx(loss_of(step) - usual_of(step), rel=1e-5)
        assert one["judged"] is (step in (60, 75))
        assert one["words"] == " ".join(f"one two three {step} {'four ' * 40}".split())[:90]
    heights = [one["excess"] for one in answer["documents"]]
    assert heights == sorted(heights, reverse=True) and heights[-1] > 0


def test_spikes_are_filtered(run: Path) -> None:
    answers = answers_of(run)

    def steps(*arguments: Any, **named: Any) -> list[int]:
        found = strict(answers.spikes(*arguments, **named))["documents"]
        return [one["step"] for one in found if one["excess"] > 0.2]

    assert steps(2) == [75, 60]
    assert steps(50, "easy") == [75, 101]
    assert steps(50, "hard") == [60, 90]
    with pytest.raises(NotThere, match="its sources: easy, hard"):
        steps(50, "nobody")
    assert steps(50, None, 0)[0] == 41  # including the warm-up
    assert steps(50, None, 91) == [101]
    assert steps(50, "easy", 0) == [41, 75, 101]
    below = strict(answers.spikes(2, best=True))["documents"]
    assert [one["step"] for one in below] == [52, 77]
    assert [one["excess"] for one in below] == pytest.approx([6 - usual_of(52), 1 - usual_of(77)], rel=1e-5)


@pytest.mark.parametrize(("steps", "first"), [(2 * WARMUP - 1, 0), (2 * WARMUP, WARMUP)])
def test_the_warm_up_is_left_out_once_the_run_is_twice_as_long(
    tmp_path: Path, metrics: Metrics, steps: int, first: int
) -> None:
    calls = (metrics(step, loss=9.0 if step == 45 else 2.0, source="a") for step in range(steps))
    write_store(tmp_path, calls, config={"warmup_steps": WARMUP})
    answer = strict(answers_of(tmp_path).spikes())
    assert answer["from"] == first
    assert [one["step"] for one in answer["documents"]][:1] == ([45] if first == 0 else [])


def test_a_source_needs_enough_documents_for_an_average(tmp_path: Path, metrics: Metrics) -> None:
    losses = [99.0 if step in (5, FEWEST_OF_SOURCE) else 2.0 for step in range(FEWEST_OF_SOURCE + 1)]
    calls = (metrics(step, loss=loss, source="a") for step, loss in enumerate(losses))
    answers = answers_of(write_store(tmp_path, calls))
    assert [one["step"] for one in strict(answers.spikes())["documents"]] == [FEWEST_OF_SOURCE]
    early = strict(answers.document(5))
    assert early["usual"] is None and early["excess"] is None and early["loss"] == 99.0


def test_shares_of_the_sources_add_up_to_one(run: Path) -> None:
    answer = strict(answers_of(run).sources())["sources"]
    assert [(one["source"], one["documents"]) for one in answer] == [("hard", 60), ("easy", 60)]
    assert sum(one["share"] for one in answer) == pytest.approx(1)
    assert sum(one["share_of_tokens"] for one in answer) == pytest.approx(1, abs=1e-5)
    assert [one["tokens"] for one in answer] == [
        sum(10 + step for step in range(0, 120, 2)), sum(10 + step for step in range(1, 120, 2)),
    ]  # fmt: skip
    for one, first in zip(answer, (0, 1), strict=True):
        losses = [loss_of(step) for step in range(first, 120, 2)]
        assert one["average"] == pytest.approx(average(losses), rel=1e-5)
        assert set(one["curve"]["steps"]) <= set(range(first, 120, 2))
        assert one["curve"]["values"][-1] == one["average"]
    other = strict(answers_of(run).sources(window=5))
    easy = average([loss_of(step) for step in range(1, 120, 2)], 5)
    assert other["window"] == 5 and other["sources"][1]["average"] == pytest.approx(easy, rel=1e-5)


def test_a_document_with_everything(run: Path) -> None:
    answer = strict(answers_of(run).document(60))
    ids = encode("one two  three 60\n" + "four " * 40)
    assert (answer["previous"], answer["step"], answer["next"]) == (59, 60, 61)
    assert (answer["source"], answer["row"], answer["gone"]) == ("hard", 60, None)
    assert answer["loss"] == 11.0 and answer["usual"] == pytest.approx(usual_of(60), rel=1e-5)
    assert answer["excess"] == pytest.approx(11 - usual_of(60), rel=1e-5)
    assert answer["judged"] == ["loss 11.0, usual 8.0"]  # not that of a checkpoint
    assert "".join(answer["texts"]) == "one two  three 60\n" + "four " * 40
    assert len(answer["texts"]) == len(answer["losses"]) == len(answer["ranks"]) == answer["tokens_read"] == len(ids)
    assert answer["losses"][:3] == [None, 0.0, 1.0] and answer["ranks"][:3] == [None, 0, 1]
    text = "one two  three 60\n" + "four " * 40
    assert answer["bytes_read"] == len(text) and answer["document_bytes"] == 4321
    assert answer["about_tokens"] == round(len(ids) * 4321 / len(text))
    assert [(one["prompt"], one["output"]) for one in answer["samples"]] == [("p60", "out 60"), ("asked", "again 60")]
    first, last = strict(answers_of(run).document(0)), strict(answers_of(run).document(119))
    assert first["previous"] is None and first["next"] == 1 and last["previous"] == 118 and last["next"] is None
    for missing in (120, 2**53, 10**6):
        with pytest.raises(NotThere, match="its steps are 0 to 119"):
            answers_of(run).document(missing)


def test_a_document_without_tokens_or_tokenizer(tmp_path: Path, metrics: Metrics) -> None:
    writer = StoreWriter(tmp_path / "run.db", {})
    writer.add_rows(rows_of(metrics(0)))
    writer.add_rows(rows_of(metrics(1, token_ids=None)))
    step, document = rows_of(metrics(2))
    writer.add_rows([step, (document[0], document[1] | {"token_ids": None, "token_losses": None, "token_ranks": None})])
    writer.add_rows(rows_of(metrics(3, token_losses=None, token_ranks=None)))
    writer.close()
    answers = answers_of(tmp_path)
    whole, no_row, thinned, bare = (strict(answers.document(number)) for number in range(4))
    assert "no tokenizer" in whole["gone"] and whole["tokens_read"] == 256 and whole["texts"] is None
    assert len(whole["losses"]) == len(whole["ranks"]) == 256
    assert whole["bytes_read"] is None and whole["about_tokens"] is None
    for gone in (no_row, thinned):
        assert "no longer kept" in gone["gone"]
        assert {gone[name] for name in ("texts", "losses", "ranks", "tokens_read", "about_tokens")} == {None}
    assert (no_row["source"], thinned["source"]) == ("", "python-code")
    assert thinned["document_bytes"] == 4321 and thinned["loss"] == pytest.approx(step[1]["loss"], rel=1e-5)
    assert bare["losses"] is None and bare["ranks"] is None and bare["tokens_read"] == 256


def test_a_document_of_infinite_losses(run: Path, metrics: Metrics) -> None:
    ids = encode("one two three four")
    losses = [1.5, math.inf, math.nan, 2.0, *[0.0] * (len(ids) - 5)]
    about = {"loss": math.inf, "accuracy": math.nan, "gradient_norm": math.nan, "source": "hard"}
    given = metrics(120, **about, token_ids=ids, token_losses=losses, token_ranks=None)
    answers = answers_of(write_store(run, [given], resume=True))
    answer = strict(answers.document(120))
    assert answer["loss"] is None and answer["accuracy"] is None and answer["gradient_norm"] is None
    assert answer["usual"] == pytest.approx(usual_of(120), rel=1e-5)
    assert answer["losses"][:5] == [None, 1.5, None, None, 2.0] and answer["ranks"] is None
    lanes = strict(answers.series())["lanes"]
    assert lanes["loss"]["not_finite"] == [120]
    assert 120 not in lanes["loss"]["steps"]
    first = strict(answers.spikes())["documents"][0]
    assert first["step"] == 120 and first["loss"] is None and first["excess"] is None and first["usual"] is not None


def test_samples_are_complete_or_evenly_spaced_with_both_ends(run: Path) -> None:
    answers = answers_of(run)
    answer = strict(answers.samples())
    assert answer["total"] == 12
    assert [one["output"] for one in answer["samples"]] == [f"out {step}" for step in range(0, 120, 10)]
    assert answer["samples"][3] == {
        "step": 30, "prompt": "p30", "output": "out 30", "reference": "r", "source": "hard", "error": None,
    }  # fmt: skip
    assert answer["prompts"] == [{"prompt": "asked", "times": 12}]
    few = strict(answers.samples(4))
    assert few["total"] == 12 and [one["step"] for one in few["samples"]] == [0, 30, 70, 110]
    part = strict(answers.samples(first=30, below=60))
    assert [one["step"] for one in part["samples"]] == [30, 40, 50]
    assert len(strict(answers.samples(1))["samples"]) == 1


def test_samples_of_a_prompt_are_spaced_by_equal_ratios(run: Path) -> None:
    answers = answers_of(run)
    assert [one["output"] for one in strict(answers.samples(prompt="asked"))["samples"]] == [
        f"again {step}" for step in range(0, 120, 10)
    ]
    assert [one["step"] for one in strict(answers.samples(4, "asked"))["samples"]] == [0, 20, 50, 110]
    assert strict(answers.samples(4, "nobody asked this"))["samples"] == []
    assert strict(answers.samples(4, "p30"))["samples"] == []  # of a document, used once
    assert len(strict(answers.samples(1, "asked"))["samples"]) == 1


def test_events_newest_first(run: Path) -> None:
    answers = answers_of(run)
    answer = strict(answers.events())
    assert answer["kinds"] == [
        {"kind": "checkpoint", "count": 2, "steps": [30, 60]},
        {"kind": "resume", "count": 1, "steps": [45]},
        {"kind": "skipped update", "count": 1, "steps": [75]},
        {"kind": "spike", "count": 1, "steps": [60]},
    ]
    assert [one["detail"] for one in answer["events"]] == ["c", "gradient", "loss 11.0, usual 8.0", "b", "a"]
    assert answer["events"][0] == {"step": 60, "time": 65.0, "kind": "checkpoint", "detail": "c"}
    assert [one["detail"] for one in strict(answers.events(2))["events"]] == ["c", "gradient"]
    assert [one["step"] for one in strict(answers.events(9, "checkpoint"))["events"]] == [60, 30]
    assert strict(answers.events(9, "none"))["events"] == []


def test_many_marks_are_thinned_with_both_ends(tmp_path: Path) -> None:
    write_store(tmp_path)
    add_events(tmp_path, *((step, "retry", "") for step in range(MOST_STEPS_OF_KIND + 500)))
    answer = strict(answers_of(tmp_path).events(3))["kinds"][0]
    assert answer["count"] == MOST_STEPS_OF_KIND + 500 and len(answer["steps"]) == MOST_STEPS_OF_KIND
    assert (answer["steps"][0], answer["steps"][-1]) == (0, MOST_STEPS_OF_KIND + 499)


def test_what_a_list_shows_of_a_step(run: Path) -> None:
    known, unknown = answers_of(run).about([60, 4000])
    assert strict(known)["words"].startswith("one two three 60 four") and known["judged"] is True
    assert unknown == {"step": 4000}


def ask(service: Service, name: str, **given: str) -> dict[str, Any]:
    answer, known = QUERIES[name]
    return strict(answer(service, Query(given, known)))


GIVEN = {"search": {"q": "one"}}


@pytest.mark.parametrize("count", [1, 2, 25, 600])
def test_every_answer_about_an_ugly_run_is_strict_json(tmp_path: Path, count: int) -> None:
    """NaN, infinities, spikes of 1e12 and any texts: JavaScript can parse every answer."""
    ugly_run(tmp_path, count)
    with closing(Service.of(tmp_path)) as service:
        assert ask(service, "run")["run"]["config"] == {"clip": None, "more": [None]}
        for name in set(QUERIES) - {"compare"}:
            ask(service, name, **GIVEN.get(name, {}))
        for name in ("series", "sources"):
            ask(service, name, scale="log", points="10", window="1")
        if service.answers.prompts():
            ask(service, "samples", prompt="0")
        for step in {0, count // 4, count // 3, count // 2, count - 1}:
            strict(service.answers.document(step))


def test_control_an_answer_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict({"loss": np.float64("nan")})


def test_flags_belong_to_the_documents_that_exist_now(run: Path) -> None:
    """Events are never deleted: those from before a rollback refer to documents that no longer exist."""
    add_events(run, (55, "spike", "of old 55"), (56, "skipped update", "of old 56"))
    assert strict(answers_of(run).document(56))["judged"] == ["of old 56"]  # control: no rollback yet
    add_events(run, (56, "roll-back", "to 56"), (57, "spike", "of new 57"))
    answers = answers_of(run)
    assert strict(answers.document(55))["judged"] == ["of old 55"] and strict(answers.document(56))["judged"] == []
    assert strict(answers.document(57))["judged"] == ["of new 57"]
    assert {55, 57} <= set(answers.judged()) and not {56, 60} & set(answers.judged())


def test_re_measured_documents_and_the_average_of_their_source(run: Path, metrics: Metrics) -> None:
    writer = StoreWriter(run / "run.db", {}, resume=True)
    count = len(encode("one two three"))
    for distance, loss in ((0, 7.0), (1, 6.5), (4, 6.0)):
        about = {"document": 60, "loss": loss, "accuracy": 0.5, "token_losses": np.full(count - 1, loss)}
        writer.add("probes", {"step": 60 + distance, **about})
    writer.add_rows(rows_of(metrics(120, source="hard", loss=8.0, token_ids=encode("one two three"))))
    writer.close()
    answers = answers_of(run)
    (probe,) = strict(answers.probes())["probes"]
    assert probe["step"] == 60 and probe["first"] == pytest.approx(loss_of(60))
    assert [(one["distance"], one["step"], one["loss"]) for one in probe["measured"]] == [
        (0, 60, 7.0), (1, 61, 6.5), (4, 64, 6.0),
    ]  # fmt: skip
    for one in probe["measured"]:
        hard = [loss_of(step) for step in range(one["step"] + 1) if source_of(step) == "hard"]
        assert one["average"] == pytest.approx(average(hard), rel=1e-5)
    answer = strict(answers.probe(60))
    assert [moment["distance"] for moment in answer["moments"]] == [None, 0, 1, 4]
    assert all(len(moment["losses"]) == len(answer["moments"][1]["losses"]) for moment in answer["moments"][1:])
    with pytest.raises(NotThere, match="step 61 was not re-measured"):
        answers.probe(61)


def test_a_truncated_character_is_not_counted_as_read(tmp_path: Path) -> None:
    text = "words and 😀"
    ids = encode(text)[:-1]  # three of the four bytes of the last character
    about = {"loss": 1.0, "document_bytes": len(text.encode())}
    calls = [{"step": 0, "token_ids": ids, **about}, {"step": 1, "token_ids": encode(text), **about}]
    write_store(tmp_path, calls, tokenizer=MODELS["ours"])
    cut, whole = (strict(answers_of(tmp_path).document(step)) for step in (0, 1))
    assert cut["bytes_read"] == len("words and ") and cut["about_tokens"] >= cut["tokens_read"]
    assert whole["bytes_read"] == whole["document_bytes"] and whole["about_tokens"] == whole["tokens_read"]


def test_a_run_overlaid_on_itself_is_the_same_curve(run: Path) -> None:
    with closing(Service.of(run)) as service:
        service.read_ahead()
        own = ask(service, "series", window="50")
        over = ask(service, "series", window="50", run=str(service.live.run["run_id"]))
        assert over["lanes"] == own["lanes"]
