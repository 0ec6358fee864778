"""Texts as windows, and what layers see: against whole forward passes of the model."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import nn
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pvq.calibration import calibration_tokens, check_samples, on_device, walk
from pvq.calibration.accumulate import InputStatistics, input_groups

SIZES = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
WINDOWED = {"sliding_window": 8, "head_dim": 16}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GATED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GATED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GATED, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GATED, **WINDOWED)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GATED, **WINDOWED)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GATED, **WINDOWED)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**{**GATED, "num_key_value_heads": 4})),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64)),
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def linear_names(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n]


def whole_passes(model: nn.Module, name: str, samples) -> tuple[torch.Tensor, int]:
    """X^T X in float64 of a module's inputs over whole forward passes, and how many there were."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, args, __: seen.append(args))
    for sample in samples:
        model(sample[None], use_cache=False)
    handle.remove()
    x = torch.cat([args[0].reshape(-1, args[0].shape[-1]) for args in seen]).double()
    return x.T @ x, len(x)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_layers_see_what_the_layers_before_them_made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    samples = torch.randint(0, 80, (3, 24))
    names = linear_names(model)
    order, left = [], []
    stages = walk(
        *(model, names, samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=left.append,
    )
    for stage in stages:
        for linear in stage.names:
            expected, tokens = whole_passes(model, linear, samples)
            statistics = stage.statistics[linear]
            assert statistics.tokens == tokens == 3 * 24
            scale = expected.abs().max()
            assert (statistics.hessian.double() - expected).abs().max() < 1e-4 * scale, linear
        order += stage.names
        for linear in stage.names:  # what quantization does to it, but coarser
            weight = model.get_submodule(linear).weight
            weight.copy_((weight * 8).round() / 8 + 0.01)
    assert sorted(order) == sorted(names)
    prefix = names[0].split(".0.")[0]
    assert left == [f"{prefix}.{i}" for i in range(3)]


@torch.no_grad()
def test_stages_are_the_modules_with_one_input():
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    stages = list(
        walk(
            *(model, linear_names(model), torch.randint(0, 80, (2, 8))),
            device=torch.device("cpu"),
            restore=lambda unit, inside: unit == "model.layers.1",
            leave=lambda unit: None,
        )
    )
    ends = [[name.rpartition(".")[2] for name in stage.names] for stage in stages]
    layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert ends == layer * 2, "the layer in the middle was restored"
    assert [stage.unit for stage in stages] == ["model.layers.0"] * 4 + ["model.layers.2"] * 4
    assert [stage.last for stage in stages] == [False, False, False, True] * 2
    first = stages[0].statistics
    assert first["model.layers.0.self_attn.q_proj"] is first["model.layers.0.self_attn.v_proj"]


@torch.no_grad()
def test_the_head_comes_after_the_layers():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**GATED, tie_word_embeddings=False)).eval()
    samples = torch.randint(0, 80, (2, 8))
    names = ["model.layers.2.mlp.up_proj", "lm_head"]
    stages = walk(
        *(model, names, samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
    )
    stage = next(stages)
    assert stage.names == names[:1]
    model.model.layers[2].mlp.up_proj.weight.mul_(3)
    stage = next(stages)
    assert (stage.unit, stage.names) == ("model", ["lm_head"])
    expected, _ = whole_passes(model, "lm_head", samples)
    assert torch.allclose(stage.statistics["lm_head"].hessian.double(), expected, rtol=1e-3)
    assert next(stages, None) is None


@torch.no_grad()
def test_a_decoder_of_other_layers_has_only_its_head():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=80, n_positions=32, n_embd=64, n_layer=2, n_head=2)
    ).eval()
    samples = torch.randint(0, 80, (2, 8))
    (stage,) = walk(
        *(model, ["lm_head"], samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
    )
    expected, _ = whole_passes(model, "lm_head", samples)
    assert torch.allclose(stage.statistics["lm_head"].hessian.double(), expected, rtol=1e-3)


@torch.no_grad()
def test_layers_that_get_more_than_hidden_states_are_seen_in_one_pass():
    class PerText(LlamaForCausalLM):
        def forward(self, input_ids, **others):
            return super().forward(input_ids, **others, text=input_ids)

    torch.manual_seed(0)
    model = PerText(LlamaConfig(**GATED)).eval()
    samples = torch.randint(0, 80, (2, 8))
    names = linear_names(model)
    with pytest.warns(UserWarning, match="cannot be run one by one"):
        (stage,) = walk(
            *(model, names, samples),
            device=torch.device("cpu"),
            restore=lambda unit, inside: False,
            leave=lambda unit: None,
        )
    assert stage.names == names
    for name in names:
        expected, _ = whole_passes(model, name, samples)
        difference = stage.statistics[name].hessian.double() - expected
        assert difference.abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_any_module_is_run_on_any_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.never = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y=None):
            return self.b(self.a(x) if y is None else self.a(x) + y)

    torch.manual_seed(0)
    model = Two()
    x, y = torch.randn(5, 8), torch.randn(5, 4)
    (stage,) = walk(
        *(model, ["a", "b", "never"], [x, (x, y), {"x": 2 * x}, x[:0]]),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
    )
    seen = torch.cat([x, x, 2 * x])
    assert torch.allclose(stage.statistics["a"].hessian, seen.T @ seen, rtol=1e-5)
    a = model.a
    behind = torch.cat([a(x), a(x) + y, a(2 * x)])
    assert torch.allclose(stage.statistics["b"].hessian, behind.T @ behind, rtol=1e-4, atol=1e-4)
    assert stage.statistics["never"].tokens == 0


def test_sums_are_those_of_all_tokens(monkeypatch):
    monkeypatch.setattr("pvq.calibration.accumulate._CHUNK", 7)
    x = torch.randn(2, 3, 11, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    statistics = InputStatistics(6, torch.device("cpu"))
    for part in x:
        statistics.add(part)
    flat = x.double().view(-1, 6)
    assert statistics.tokens == len(flat)
    assert torch.allclose(statistics.hessian.double(), flat.T @ flat, rtol=1e-5, atol=1e-5)


def test_modules_with_one_input_are_found():
    a, b, c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def run() -> None:
        x = torch.zeros(1, 4)
        c(a(x) + b(x))

    modules = {"c": c, "b": b, "a": a, "never": nn.Linear(4, 4)}
    assert input_groups(modules, run) == ([["a", "b"], ["c"]], True)
    assert input_groups(modules, lambda: (run(), run())) == ([["a"], ["b"], ["c"]], False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modules_share_no_input_that_was_written_into(mode):
    modules = {name: nn.Linear(4, 4) for name in "abcd"}

    def run() -> None:
        x = torch.ones(1, 4)
        modules["a"](x)
        modules["b"](x)
        x.mul_(2)
        modules["c"](x)
        modules["d"](x)

    with mode():
        assert input_groups(modules, run) == ([["a", "b"], ["c", "d"]], True)


def test_a_module_called_again_shares_no_input():
    a, b, c, d = (nn.Linear(4, 4) for _ in range(4))

    def run() -> None:
        x, y = torch.zeros(1, 4), torch.ones(1, 4)
        for module in (a, b, c):
            module(x)
        for module in (b, d):
            module(y)

    modules = {"a": a, "b": b, "c": c, "d": d}
    assert input_groups(modules, run) == ([["a", "c"], ["b"], ["d"]], False)


@pytest.mark.parametrize("twice_first", [True, False])
@torch.no_grad()
def test_a_module_called_twice_has_statistics_of_its_own(twice_first):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x, y):
            layers = (self.twice, self.once) if twice_first else (self.once, self.twice)
            return sum(layer(x).sum() for layer in layers) + self.twice(y).sum()

    torch.manual_seed(0)
    samples = [(torch.randn(5, 8), 10 * torch.randn(7, 8)) for _ in range(3)]
    (stage,) = walk(
        *(Two(), ["once", "twice"], samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
    )
    x, y = (torch.cat(parts).double() for parts in zip(*samples, strict=True))
    for name, tokens, expected in (("once", 15, x.T @ x), ("twice", 36, x.T @ x + y.T @ y)):
        assert stage.statistics[name].tokens == tokens
        assert torch.allclose(stage.statistics[name].hessian.double(), expected, rtol=1e-4)


@torch.no_grad()
def test_a_module_called_twice_in_a_decoder_layer_has_statistics_of_its_own():
    class Twice(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

        def forward(self, x):
            return self.down_proj(self.gate_proj(x).relu() * self.up_proj(x) + self.up_proj(3 * x))

    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    for layer in model.model.layers:
        layer.mlp = Twice(layer.mlp)
    samples = torch.randint(0, 80, (2, 8))
    names = linear_names(model)
    for stage in walk(
        *(model, names, samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
    ):
        for name in stage.names:
            expected, tokens = whole_passes(model, name, samples)
            assert stage.statistics[name].tokens == tokens == (32 if "up_proj" in name else 16)
            difference = stage.statistics[name].hessian.double() - expected
            assert difference.abs().max() < 1e-4 * expected.abs().max(), name


def test_short_memory_moves_the_work_to_the_cpu():
    def compute(device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return device.type

    with pytest.warns(UserWarning, match=r"cuda:1 is out of memory for layer 3: .* on the CPU"):
        assert on_device(torch.device("cuda:1"), compute, "layer 3") == "cpu"
    with pytest.raises(torch.OutOfMemoryError):
        on_device(torch.device("cpu"), lambda _: compute(torch.device("cuda")), "it")


def test_windows_are_spread_over_the_text():
    tokens = torch.arange(100, dtype=torch.int32)
    windows = calibration_tokens(tokens, samples=3, length=10)
    assert windows.tolist() == [list(range(b, b + 10)) for b in (0, 30, 60)]
    assert windows.dtype == torch.int64
    windows = calibration_tokens(tokens, samples=10, length=10)
    assert torch.equal(windows.flatten(), tokens.long())
    windows = calibration_tokens(tokens, samples=2, length=10, max_tokens=29)
    assert windows.tolist() == [list(range(b, b + 10)) for b in (0, 10)], "of its beginning"
    given = torch.ones(4, 7, dtype=torch.int32)
    assert torch.equal(calibration_tokens(given, samples=2, length=3), given.long())
    assert calibration_tokens(torch.zeros(5000, dtype=torch.int64), samples=2).shape == (2, 2048)
    assert calibration_tokens(tokens, samples=2, context=50).shape == (2, 50)


def test_texts_come_from_files_strings_and_datasets(tmp_path, tokenizer, monkeypatch):
    text = "It was the best of times, it was the worst of times. " * 20
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (tmp_path / "a.txt").write_text(text)
    options = {"samples": 2, "length": 50}
    expected = calibration_tokens(torch.tensor(ids), **options)
    for source in (tmp_path / "a.txt", str(tmp_path / "a.txt"), [text]):
        assert torch.equal(calibration_tokens(source, tokenizer, **options), expected)
    half = [text[:500], text[500:]]
    joined = [i for part in half for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
    assert torch.equal(
        calibration_tokens(half, tokenizer, **options),
        calibration_tokens(torch.tensor(joined), **options),
    )

    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"without dataset_info\.json"):
        calibration_tokens(folder, tokenizer)
    (folder / "dataset_dict.json").write_text("{}")

    class Columns(dict):
        column_names = ("text",)

        def __getitem__(self, key):
            return {"text": half} if isinstance(key, slice) else super().__getitem__(key)

    splits = {"test": None, "train": Columns()}
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_from_disk=lambda path: splits)
    )
    assert torch.equal(
        calibration_tokens(folder, tokenizer, **options),
        calibration_tokens(half, tokenizer, **options),
    )
    Columns.column_names = ("content", "id")
    with pytest.raises(ValueError, match="no column 'text', only content, id"):
        calibration_tokens(folder, tokenizer)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        calibration_tokens(folder, tokenizer)


def test_a_text_too_short_for_all_windows_is_used_whole():
    with pytest.warns(UserWarning, match="has 3 windows of 10 tokens, 5 were asked for"):
        assert calibration_tokens(torch.arange(35), samples=5, length=10).shape == (3, 10)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (torch.arange(9), {"length": 10}, ValueError, "9 tokens, less than one window of 10.*--l"),
        (torch.arange(9.0), {}, TypeError, "dtype torch.float32, expected integers"),
        (torch.zeros(2, 3, 4).long(), {}, ValueError, r"shape \[2, 3, 4\]"),
        (torch.zeros(0, 4).long(), {}, ValueError, r"shape \[0, 4\]"),
        (torch.arange(9), {"samples": 0}, ValueError, "samples is 0"),
        (torch.arange(9), {"length": 4, "max_tokens": 3}, ValueError, "has 3 tokens, less than"),
        (torch.arange(9), {"max_tokens": 0}, ValueError, "max_tokens is 0"),
        (torch.arange(99), {"length": 65, "context": 64}, ValueError, "length is 65, expected 1"),
        ("missing.txt", {"tokenizer": True}, FileNotFoundError, r"missing\.txt does not exist"),
        ([], {"tokenizer": True}, ValueError, "0 tokens, less than one window"),
        ([1, 2], {"tokenizer": True}, TypeError, "is a list, expected a path, a list of strings"),
        (3, {"tokenizer": True}, TypeError, "is a int, expected a path"),
        (["text"], {}, TypeError, "needs the model's tokenizer"),
    ],
)
def test_bad_texts_are_refused(source, options, error, message, tokenizer):
    if options.get("tokenizer"):
        options = {**options, "tokenizer": tokenizer}
    with pytest.raises(error, match=message):
        calibration_tokens(source, **options)


def test_a_file_that_is_no_text_is_refused(tmp_path, tokenizer):
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        calibration_tokens(tmp_path / "a", tokenizer)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([[1, 2]], TypeError, "is a list, expected token ids"),
        (torch.zeros(2, 8), TypeError, "dtype torch.float32"),
        (torch.zeros(8).long(), ValueError, r"shape \[8\], expected token ids"),
        (torch.zeros(0, 8).long(), ValueError, r"shape \[0, 8\]"),
        (torch.zeros(1, 65).long(), ValueError, "65 tokens, more than the model's context of 64"),
        (torch.full((1, 8), 80), ValueError, "from 80 to 80, the model's are 0 to 79"),
        (torch.full((1, 8), -1), ValueError, "from -1 to -1"),
    ],
)
def test_samples_that_do_not_fit_the_model_are_refused(samples, error, message):
    with pytest.raises(error, match=message):
        check_samples(MODELS["llama"](), samples)
    with pytest.raises(ValueError, match="no samples"):
        check_samples(nn.Linear(2, 2), [])
