import dataclasses
import json
from pathlib import Path

import pytest

from trainer.arguments import parse_arguments, read_config_file, refuse_ranks
from trainer.config import FIELDS, MODEL_SIZES, TrainingConfig
from trainer.errors import UserError

# Every setting, typed on the command line as something other than its default.
TYPED = {
    "num_steps": ("7", 7),
    "max_seq_length": ("64", 64),
    "viz_interval": ("3", 3),
    "display_samples": ("4", 4),
    "evaluation_interval": ("6", 6),
    "checkpoint_interval": ("5", 5),
    "dataset": ("a.jsonl", "a.jsonl"),
    "dataset_config": ("en", "en"),
    "dataset_split": ("validation", "validation"),
    "dataset_revision": ("main", "main"),
    "text_column": ("content", "content"),
    "repeat": (None, True),
    "max_stall": ("2.5", 2.5),
    "tokenizer": ("t.model", "t.model"),
    "vocab_size": ("512", 512),
    "model_size": ("tiny", "tiny"),
    "initial_learning_rate": ("0.01", 0.01),
    "warmup_steps": ("10", 10),
    "schedule": ("cosine", "cosine"),
    "min_learning_rate": ("1e-4", 1e-4),
    "cooldown_steps": ("8", 8),
    "seed": ("3", 3),
    "spike": ("skip", "skip"),
    "deterministic": (None, True),
    "keep_checkpoints": ("9", 9),
    "keep_charts": ("40", 40),
    "keep_documents": ("7", 7),
    "keep_every": ("100", 100),
    "dtype": ("fp32", "fp32"),
    "compile": (None, True),
    "device": ("cpu", "cpu"),
    "pretrained_checkpoint": ("c.bin", "c.bin"),
    "checkpoint": (None, False),
    "probes": (None, False),
    "checkpoint_dir": ("c", "c"),
    "viz_dir": ("v", "v"),
    "prompt": ("Once", ("Once",)),
}


def test_defaults_of_the_contract() -> None:
    config = TrainingConfig()
    assert (config.num_steps, config.warmup_steps, config.initial_learning_rate) == (10000, 1000, 0.001)
    assert (config.max_seq_length, config.display_samples, config.viz_interval) == (256, 50, 50)
    assert (config.checkpoint_interval, config.dataset, config.shape) == (2000, "auto", MODEL_SIZES["small"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_steps = 1  # type: ignore[misc]


def test_the_test_preset_of_the_contract() -> None:
    config = parse_arguments(["--test"]).merge()
    assert (config.num_steps, config.max_seq_length, config.warmup_steps) == (100, 128, 20)
    assert (config.viz_interval, config.display_samples, config.checkpoint_interval) == (25, 10, 50)
    assert config.dataset == "python-library"
    assert parse_arguments(["--test", "--dataset", "x.txt"]).merge().dataset == "x.txt"


def test_every_setting_has_a_flag_that_reaches_it() -> None:
    assert set(TYPED) == set(FIELDS)
    for name, (word, value) in TYPED.items():
        flag = FIELDS[name].metadata["flag"]
        company = {"schedule": "linear"} if name == "min_learning_rate" else {}  # what a setting can't be without
        words = [FIELDS[key].metadata["flag"] + f"={needed}" for key, needed in company.items()]
        config = parse_arguments([*words, flag] if word is None else [*words, flag, word]).merge()
        assert getattr(config, name) == value != FIELDS[name].default
        others = {key for key in FIELDS if getattr(config, key) != FIELDS[key].default}
        assert others == {name, *company}


def test_all_documents_are_kept_where_that_is_typed_or_null(tmp_path: Path) -> None:
    assert parse_arguments([]).merge().keep_documents == 200_000
    assert parse_arguments(["--keep-documents", "all"]).merge().keep_documents is None
    file = tmp_path / "c.json"
    file.write_text('{"keep_documents": null}')
    assert parse_arguments(["--config", str(file)]).merge().keep_documents is None
    resumed = TrainingConfig(keep_documents=None).to_dict()
    assert parse_arguments(["--resume"]).merge(resumed).keep_documents is None
    assert parse_arguments(["--resume", "--keep-documents", "5"]).merge(resumed).keep_documents == 5
    resumed = TrainingConfig(keep_documents=5).to_dict()
    assert parse_arguments(["--resume", "--keep-documents", "all"]).merge(resumed).keep_documents is None


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
    assert config.num_steps == 40  # typed
    assert config.viz_interval == 31  # file
    assert config.display_samples == 22  # resumed run
    assert config.checkpoint_interval == 50  # preset
    assert config.vocab_size == 8192  # default


def test_a_stored_config_is_a_config_file(tmp_path: Path) -> None:
    config = TrainingConfig(prompt=("a", "b"), num_steps=5, max_stall=1)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(config.to_dict()))
    assert TrainingConfig(**read_config_file(file)) == config


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--steps 0", ["--steps", "at least 1", "0"]),
        ("--steps -5", ["--steps"]),
        ("--steps ten", ["--steps", "ten"]),
        ("--max-seq-length 1", ["--max-seq-length", "at least 2"]),
        ("--viz-interval 0", ["--viz-interval", "at least 1"]),
        ("--display-samples 0", ["--display-samples", "at least 1"]),
        ("--checkpoint-interval 0", ["--checkpoint-interval", "at least 1"]),
        ("--learning-rate 0", ["--learning-rate", "above 0"]),
        ("--learning-rate nan", ["--learning-rate", "finite"]),
        ("--learning-rate inf", ["--learning-rate", "finite"]),
        ("--warmup-steps -1", ["--warmup-steps", "at least 0"]),
        ("--schedule cosin", ["--schedule", "did you mean cosine?"]),
        ("--min-learning-rate -1 --schedule linear", ["--min-learning-rate", "at least 0"]),
        ("--min-learning-rate 1e-4", ["--min-learning-rate 0.0001 is for --schedule cosine or linear"]),
        ("--min-learning-rate 0.1 --schedule cosine", ["--min-learning-rate 0.1", "above --learning-rate 0.001"]),
        ("--cooldown -1", ["--cooldown", "at least 0"]),
        ("--cooldown 301 --steps 300", ["--cooldown 301", "--steps 300"]),
        ("--vocab-size 10", ["--vocab-size", "at least 300"]),
        ("--seed -1", ["--seed"]),
        ("--model-size smal", ["--model-size", "did you mean small?"]),
        ("--dtype fp16", ["--dtype", "fp32"]),
        ("--device gpu", ["--device", "cuda:N"]),
        ("--gpu 0 --device cpu", ["--gpu", "--device", "twice"]),
        ("--gpu -1", ["--gpu"]),
        ("--max-stall 0", ["--max-stall", "above 0"]),
        ("--keep-documents 0", ["--keep-documents", "at least 1"]),
        ("--keep-documents many", ["--keep-documents", "a whole number or all", "many"]),
        ("--max-chunks 100", ["--max-chunks", "--steps"]),
        ("--tokens-per-chunk=4096", ["--tokens-per-chunk", "--steps"]),
        ("--step 5", ["--step", "did you mean --steps?"]),
        ("--resume --pretrained-checkpoint c.bin", ["--resume", "--pretrained-checkpoint"]),
        ("--config missing.json", ["--config", "missing.json"]),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(words: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(words.split()).merge()
    message = str(caught.value)
    assert "\n" not in message
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
        ("{", ["not JSON"]),
    ],
)
def test_a_mistake_in_a_config_file_gets_one_line(content: str, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        parse_arguments(["--config", str(file)]).merge()
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_more_than_one_rank_is_refused(name: str) -> None:
    refuse_ranks({name: "1"})
    with pytest.raises(UserError, match="several ranks"):
        refuse_ranks({name: "2"})


@pytest.mark.parametrize("flag", ["--max-seq-length 64", "--seed 1", "--dataset other.jsonl", "--model-size tiny"])
def test_a_resumed_run_keeps_what_it_is(flag: str) -> None:
    resumed = TrainingConfig().to_dict()
    with pytest.raises(UserError, match="can't be changed") as caught:
        parse_arguments(["--resume", *flag.split()]).merge(resumed)
    assert flag.split()[1] in str(caught.value)  # what was asked for, and what the run has
    assert str(resumed[parse_arguments(flag.split()).typed.keys().__iter__().__next__()]) in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("--learning-rate", "initial_learning_rate", 0.01),
        ("--schedule", "schedule", "constant"),
        ("--min-learning-rate", "min_learning_rate", 0.0002),
        ("--cooldown", "cooldown_steps", 50),
    ],
)
def test_a_resumed_run_takes_its_learning_rate_from_a_typed_flag_only(
    flag: str, key: str, value: object, tmp_path: Path
) -> None:
    resumed = TrainingConfig(schedule="cosine").to_dict()
    assert getattr(parse_arguments(["--resume", flag, str(value)]).merge(resumed), key) == value
    file = tmp_path / "c.json"
    file.write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=f"type {flag}"):
        parse_arguments(["--resume", "--config", str(file)]).merge(resumed)


def test_sizes() -> None:
    assert MODEL_SIZES["small"].parameters(8192) == pytest.approx(13.8e6, rel=0.01)
    assert MODEL_SIZES["base"].parameters(8192) == pytest.approx(124e6, rel=0.01)
