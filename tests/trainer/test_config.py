import dataclasses
import json
from pathlib import Path

import pytest

from trainer.arguments import parse_arguments, read_config_file, refuse_ranks
from trainer.config import FIELDS, MODEL_SIZES, TrainingConfig
from trainer.errors import UserError

# Every setting, given on the command line as something other than its default.
GIVEN = dict(
    word.split("=")
    for word in """
    num_steps=7 max_seq_length=64 viz_interval=3 keep_charts=40 keep_documents=7 display_samples=4 prompt=Once
    evaluation_interval=6 probes=false checkpoint_interval=5 dataset=a.jsonl dataset_config=en repeat=true
    dataset_split=validation dataset_revision=main text_column=content max_stall=2.5 tokenizer=t.model vocab_size=512
    model_size=tiny initial_learning_rate=0.01 warmup_steps=10 schedule=cosine min_learning_rate=0.0001
    cooldown_steps=8 seed=3 dtype=fp32 compile=true device=cpu pretrained_checkpoint=c.bin spike=skip
    deterministic=true checkpoint=false keep_checkpoints=9 keep_every=100 checkpoint_dir=c viz_dir=v
    """.split()
)


def test_defaults_of_the_contract() -> None:
    config = TrainingConfig()
    assert (config.num_steps, config.warmup_steps, config.initial_learning_rate) == (10000, 1000, 0.001)
    assert (config.max_seq_length, config.display_samples, config.viz_interval) == (256, 50, 50)
    assert (config.checkpoint_interval, config.dataset, config.shape) == (2000, "auto", MODEL_SIZES["small"])
    assert MODEL_SIZES["small"].parameters(8192) == pytest.approx(13.8e6, rel=0.01)
    assert MODEL_SIZES["base"].parameters(8192) == pytest.approx(124e6, rel=0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_steps = 1  # type: ignore[misc]


def test_the_test_preset_of_the_contract() -> None:
    config = parse_arguments(["--test"]).merge()
    assert (config.num_steps, config.max_seq_length, config.warmup_steps) == (100, 128, 20)
    assert (config.viz_interval, config.display_samples, config.checkpoint_interval) == (25, 10, 50)
    assert config.dataset == "python-library"
    assert parse_arguments(["--test", "--dataset", "x.txt"]).merge().dataset == "x.txt"


def test_every_setting_has_a_flag_that_reaches_it() -> None:
    assert set(GIVEN) == set(FIELDS)
    for name, text in GIVEN.items():
        flag = FIELDS[name].metadata["flag"]
        needed = {"schedule": "linear"} if name == "min_learning_rate" else {}  # refused without a schedule
        words = [f"{FIELDS[key].metadata['flag']}={value}" for key, value in needed.items()]
        config = parse_arguments([*words, flag] if text in ("true", "false") else [*words, flag, text]).merge()
        value = getattr(config, name)
        assert value != FIELDS[name].default
        assert text == ({True: "true", False: "false", ("Once",): "Once"}.get(value) or str(value))
        assert {key for key in FIELDS if getattr(config, key) != FIELDS[key].default} == {name, *needed}


def test_keep_documents_all_can_be_given_as_a_word_or_as_null(tmp_path: Path) -> None:
    assert parse_arguments([]).merge().keep_documents == 200_000
    assert parse_arguments(["--keep-documents", "all"]).merge().keep_documents is None
    file = tmp_path / "c.json"
    file.write_text('{"keep_documents": null}')
    assert parse_arguments(["--config", str(file)]).merge().keep_documents is None
    for stored, words, expected in ((None, [], None), (None, ["5"], 5), (5, ["all"], None)):
        flags = ["--resume", *(["--keep-documents", *words] if words else [])]
        assert parse_arguments(flags).merge(TrainingConfig(keep_documents=stored).to_dict()).keep_documents == expected


def test_gpu_and_out_are_short_for_other_settings() -> None:
    assert parse_arguments(["--gpu", "2"]).merge().device == "cuda:2"
    config = parse_arguments(["--out", "here"]).merge()
    assert (config.viz_dir, config.checkpoint_dir) == ("here/training_viz", "here/checkpoints")


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"num_steps": 30, "viz_interval": 31}))
    resumed = {"num_steps": 20, "viz_interval": 21, "display_samples": 22}
    arguments = parse_arguments(["--test", "--config", str(file), "--steps", "40"])
    config = arguments.merge(resumed)
    assert config.num_steps == 40  # command line
    assert config.viz_interval == 31  # file
    assert config.display_samples == 22  # resumed run
    assert config.checkpoint_interval == 50  # preset
    assert config.vocab_size == 8192  # default


def test_a_stored_config_is_a_config_file(tmp_path: Path) -> None:
    config = TrainingConfig(prompt=("a", "b"), num_steps=5, max_stall=1)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(config.to_dict()))
    assert TrainingConfig(**read_config_file(file)) == config


def error_of(words: list[str]) -> str:
    """The one line that a command line is refused with."""
    with pytest.raises(UserError) as caught:
        parse_arguments(words).merge()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_bound_is_enforced_and_its_flag_is_named() -> None:
    refused = 0
    for setting in FIELDS.values():
        flag, options = setting.metadata["flag"], setting.metadata
        for bound, words, further in (("minimum", "at least", -1), ("above", "above", 0), ("maximum", "at most", 1)):
            if bound in options:
                message = error_of([f"{flag}={options[bound] + further}"])
                assert flag in message and f"{words} {options[bound]:.10g}" in message, message
                refused += 1
    assert refused >= 20


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--steps ten", ["--steps", "ten"]),
        ("--learning-rate nan", ["--learning-rate", "finite"]),
        ("--learning-rate inf", ["--learning-rate", "finite"]),
        ("--schedule cosin", ["--schedule", "did you mean cosine?"]),
        ("--min-learning-rate 1e-4", ["--min-learning-rate 0.0001", "--schedule cosine or linear"]),
        ("--min-learning-rate 0.1 --schedule cosine", ["--min-learning-rate 0.1", "--learning-rate 0.001"]),
        ("--cooldown 301 --steps 300", ["--cooldown 301", "--steps 300"]),
        ("--dtype fp16", ["--dtype", "fp32"]),
        ("--device gpu", ["--device", "cuda:N"]),
        ("--gpu 0 --device cpu", ["--gpu", "--device"]),
        ("--gpu -1", ["--gpu"]),
        ("--keep-documents many", ["--keep-documents", "a whole number or all", "many"]),
        ("--max-chunks 100", ["--max-chunks", "--steps"]),
        ("--tokens-per-chunk=4096", ["--tokens-per-chunk", "--steps"]),
        ("--step 5", ["--step", "did you mean --steps?"]),
        ("--resume --pretrained-checkpoint c.bin", ["--resume", "--pretrained-checkpoint"]),
        ("--config missing.json", ["--config", "missing.json"]),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(words: str, parts: list[str]) -> None:
    message = error_of(words.split())
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"num_step": 5}', ["num_step", "did you mean num_steps?"]),
        ('{"tokens_per_chunk": 5}', ["tokens_per_chunk"]),
        ('{"num_steps": "5"}', ["num_steps", "whole number"]),
        ('{"num_steps": 5.5}', ["num_steps", "whole number"]),
        ('{"num_steps": true}', ["num_steps", "whole number"]),
        ('{"num_steps": 0}', ["num_steps", "at least 1"]),
        ('{"prompt": "one"}', ["prompt", "list of strings"]),
        ('{"dataset": null}', ["dataset"]),
        ('{"keep_documents": "all"}', ["keep_documents", "a whole number, or null for all"]),
        ("[1]", ["object of settings"]),
        ("{", ["not valid JSON"]),
    ],
)
def test_a_mistake_in_a_config_file_gets_one_line(content: str, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    message = error_of(["--config", str(file)])
    assert str(file) in message and all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_more_than_one_rank_is_refused(name: str) -> None:
    refuse_ranks({name: "1"})
    with pytest.raises(UserError, match=f"{name}=2"):
        refuse_ranks({name: "2"})


@pytest.mark.parametrize("flag", ["--max-seq-length 64", "--seed 1", "--dataset other.jsonl", "--model-size tiny"])
def test_a_resumed_run_keeps_what_defines_it(flag: str) -> None:
    resumed = TrainingConfig().to_dict()
    arguments = parse_arguments(["--resume", *flag.split()])
    (name, value), *_ = arguments.typed.items()
    with pytest.raises(UserError, match="can't be changed") as caught:
        arguments.merge(resumed)
    assert str(value) in str(caught.value) and str(resumed[name]) in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("--learning-rate", "initial_learning_rate", 0.01),
        ("--schedule", "schedule", "constant"),
        ("--min-learning-rate", "min_learning_rate", 0.0002),
        ("--cooldown", "cooldown_steps", 50),
    ],
)
def test_only_a_flag_changes_the_rate_of_a_resumed_run(flag: str, key: str, value: object, tmp_path: Path) -> None:
    resumed = TrainingConfig(schedule="cosine").to_dict()
    assert getattr(parse_arguments(["--resume", flag, str(value)]).merge(resumed), key) == value
    file = tmp_path / "c.json"
    file.write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=f"{flag} {value}"):
        parse_arguments(["--resume", "--config", str(file)]).merge(resumed)
