"""A Qwen3 written by `transformers` gives equal logits. Any other folder is refused in one line."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import make_texts
from tests.qwen3 import VOCAB, make_model, write_folder
from tests.trainer.base.test_checkpoint_file import Canary
from trainer.data.tokenizer import Tokenizer
from trainer.errors import RunError, UserError
from trainer.interop.load import stored_tokenizer
from trainer.interop.transformers_folder import read_transformers_folder
from trainer.model.language_model import LanguageModel


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def folder(qwen3: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(qwen3, tmp_path / "model"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    kept = {key: value for key, value in (json.loads(path.read_text()) | values).items() if value != "gone"}
    path.write_text(json.dumps(kept))


def distance(folder: Path) -> float:
    """The largest difference between our logits and those of transformers on the same float32 weights."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = LanguageModel.from_checkpoint(read_transformers_folder(folder))
    ids = torch.randint(0, VOCAB, (2, 90), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float((ours(ids) - theirs(ids).logits).abs().max())


def test_logits_are_equal(qwen3: Path) -> None:
    assert distance(qwen3) < 1e-4
    state = read_transformers_folder(qwen3)
    assert {weight.dtype for weight in state["model"].values()} == {torch.float32}
    assert state["pretrained"] == {"max_position_embeddings": 4096, "eos_token_id": [600]}
    state["shape"]["rope_theta"] = 1e4
    ids = torch.arange(90).unsqueeze(0)
    theirs = AutoModelForCausalLM.from_pretrained(qwen3)
    with torch.no_grad():
        difference = LanguageModel.from_checkpoint(state)(ids) - theirs(ids).logits
    assert difference.abs().max() > 1e-3, "the control: another base of the rotary embedding"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_short_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    write_folder(tmp_path, make_model().to(dtype), max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert distance(tmp_path) < 1e-4


def test_a_config_of_an_older_transformers(folder: Path) -> None:
    change_config(folder, rope_parameters="gone", layer_types="gone", rope_theta=1e6, rope_scaling=None)
    assert distance(folder) < 1e-4


def test_an_output_layer_equal_to_the_embedding_is_dropped(folder: Path) -> None:
    weights({"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()})(folder)
    assert "lm_head.weight" not in read_transformers_folder(folder)["model"]


def test_links_are_followed_as_in_the_cache_of_the_hub(qwen3: Path, tmp_path: Path) -> None:
    for path in qwen3.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert read_transformers_folder(tmp_path)["vocab_size"] == VOCAB


def config(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **values)


def files(changed: dict[str, bytes | None]) -> Callable[[Path], None]:
    """Write these files; delete those that are None."""

    def change(folder: Path) -> None:
        for name, content in changed.items():
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)

    return change


def index(name: object) -> Callable[[Path], None]:
    content = json.dumps({"weight_map": {"model.norm.weight": name}}).encode()
    return files({"model.safetensors": None, "model.safetensors.index.json": content})


def weights(changed: dict[str, torch.Tensor], without: str = "") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        found.pop(without, None)
        save_file(found | changed, folder / "model.safetensors")

    return change


def edited(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: files({name: edit((folder / name).read_bytes())})(folder)


def name_outside(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "x.safetensors")
    index("../x.safetensors")(folder)


def pipe(folder: Path) -> None:
    index("pipe.safetensors")(folder)
    os.mkfifo(folder / "pipe.safetensors")


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"canary": Canary(folder / "ran")}, folder / "pytorch_model.bin")


OTHER_TOKENIZER = Tokenizer.train(make_texts(20), vocab_size=320).model_bytes

DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another architecture": (config(model_type="llama"), 'model_type "llama", but this trainer needs "qwen3"'),
    "untied": (config(tie_word_embeddings=False), "tie_word_embeddings false, but this trainer needs true"),
    "untied by default": (config(tie_word_embeddings="gone"), "tie_word_embeddings false"),
    "attention bias": (config(attention_bias=True), "attention_bias true"),
    "sliding window": (config(use_sliding_window=True), "use_sliding_window true"),
    "sliding layers": (config(layer_types=["sliding_attention"] * 3), "sliding-window"),
    "quantized": (config(quantization_config={"bits": 4}), 'quantization_config {"bits": 4}'),
    "another activation": (config(hidden_act="gelu"), "hidden_act"),
    "scaled": (config(rope_parameters={"rope_type": "yarn", "factor": 4, "rope_theta": 1e6}), "yarn"),
    "scaled, older": (config(rope_parameters="gone", rope_scaling={"type": "linear", "factor": 2}), "linear"),
    "no rope_theta": (config(rope_parameters="gone"), "does not set rope_theta"),
    "a size is missing": (config(head_dim="gone"), "does not set head_dim"),
    "a size is text": (config(hidden_size="48"), "sizes must be whole numbers above 0"),
    "sizes beyond the file": (config(num_hidden_layers=10**9), "the sizes do not match the weights"),
    "rows beyond the file": (config(vocab_size=10**12), "the sizes do not match the weights"),
    "layers too few": (config(num_hidden_layers=2), "weights do not fit"),
    "heads that can't be shared": (config(num_key_value_heads=3), "query heads can't share"),
    "an odd head": (config(head_dim=31), "head_dim must be even"),
    "a base of zero": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta"),
    "no JSON": (files({"config.json": b"{"}), "config.json is not a JSON object"),
    "deep JSON": (files({"config.json": b"[" * 100_000}), "config.json is not a JSON object"),
    "no object": (files({"config.json": b"[1]"}), "config.json is not a JSON object"),
    "a large config": (files({"config.json": b" " * 10_000_001}), "config.json is too large"),
    "no weights": (files({"model.safetensors": None}), "but no model.safetensors"),
    "a pickle": (pickle, "pytorch_model.bin is a pickle file, which is never opened"),
    "cut off": (edited("model.safetensors", lambda data: data[:-100]), "can't be read as safetensors"),
    "empty": (files({"model.safetensors": b""}), "can't be read as safetensors"),
    "claims 16 EB": (edited("model.safetensors", lambda data: b"\xff" * 8 + data[8:]), "can't be read as safetensors"),
    "outside": (name_outside, "must name .safetensors files in its own folder"),
    "outside, absolute": (index("/etc/x.safetensors"), "must name"),
    "two lines": (index("a\nb.safetensors"), "must name"),
    "a name too long": (index("a" * 300 + ".safetensors"), "must name"),
    "an index of numbers": (index(3), "must name"),
    "an index of pickles": (index("model.bin"), "must name"),
    "a shard is missing": (index("model-1.safetensors"), "no model-1.safetensors"),
    "a pipe": (pipe, "no pipe.safetensors"),
    "untied weights": (weights({"lm_head.weight": torch.zeros(VOCAB, 48)}), "differs from the embedding"),
    "integers": (weights({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}), "has dtype I8"),
    "another name": (weights({"norm": torch.zeros(48)}, without="model.norm.weight"), "do not fit"),
    "no tokenizer": (files({"tokenizer.json": None}), "no usable tokenizer"),
    "no bytes": (edited("tokenizer.json", lambda data: data.replace(b"ByteLevel", b"Strip")), "no usable tokenizer"),
    "another model's": (files({"tokenizer.json": None, "tokenizer.model": OTHER_TOKENIZER}), "its model 640"),
    "text": (files({"tokenizer.json": None, "tokenizer.model": b"text"}), "not a SentencePiece model"),
}


def use(folder: Path) -> None:
    """Do what a run does with a folder."""
    state = read_transformers_folder(folder)
    stored_tokenizer(state, str(folder))
    LanguageModel.from_checkpoint(state)


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unusable_folder_is_refused_in_one_line(folder: Path, name: str) -> None:
    damage, reason = DAMAGED[name]
    damage(folder)
    with pytest.raises(UserError) as refusal:
        use(folder)
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (folder / "ran").exists()


def test_flipped_bytes_are_refused_or_harmless(folder: Path) -> None:
    generator, outcomes = random.Random(1), []
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for number in range(45):
        name = ("config.json", "model.safetensors", "generation_config.json")[number % 3]
        content = bytearray(whole[name])
        for _ in range(3):
            content[generator.randrange(min(len(content), 3000))] = generator.choice(b'09-"{}[],:xe\0')
        (folder / name).write_bytes(content)
        try:
            use(folder)
            outcomes.append("harmless")
        except RunError as error:
            outcomes.append("refused")
            assert "\n" not in str(error)
        (folder / name).write_bytes(whole[name])
    assert outcomes.count("refused") > 15
