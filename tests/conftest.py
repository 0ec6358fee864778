"""Models, texts and checkpoints that the tests share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import pvq

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny"


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Forgets what a test has compiled: torch.compile gives up after some versions of one."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def books() -> str:
    """120,000 characters that the bundled model was not trained on."""
    return (DATA / "books.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokens(books: str) -> torch.Tensor:
    """The first few thousand tokens of the text."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return torch.tensor(tokenizer(books[:16_000], add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="session")
def quantized_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the bundled model at 3.25 bits. Do not write into it: copy it."""
    out = tmp_path_factory.mktemp("checkpoints") / "tiny-3.25"
    model = AutoModelForCausalLM.from_pretrained(TINY)
    report = pvq.quantize_model(model, pvq.PVQConfig(3.25), progress=False)
    pvq.save_checkpoint(model, report, out, source=TINY)
    return out


@pytest.fixture
def small_llama() -> Callable[..., LlamaForCausalLM]:
    """Makes a random two-layer model with 14 linear layers of the decoder."""

    def make(**changes: object) -> LlamaForCausalLM:
        values = {
            "vocab_size": 80,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
            "pad_token_id": None,
        }
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**values, **changes})).eval()

    return make
