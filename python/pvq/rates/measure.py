"""measure_sensitivity: the sensitivities of the layers that quantize_model would quantize."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pvq.config import PVQConfig
from pvq.plan import make_plan
from pvq.rates.sensitivity import DEFAULT_LEVELS, Sensitivity, measure_targets

# Every layer fits it: what is measured does not depend on a code.
_ANY = PVQConfig(code="higgs")


def measure_sensitivity(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    skip: Sequence[str] = (),
    embeddings: bool = False,
    head: bool = False,
    loss: str = "kl",
    levels: Sequence[float] = DEFAULT_LEVELS,
    source: str = "tokens as given",
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Measures every layer: ``windows * layers * (levels + 1)`` passes, twice that with ``nll``.

    Args:
        model: dense, in evaluation mode; its weights are changed on the way and put back. Figures
            below about 1e-4 nats need a model in float32.
        tokens: [windows, length] int64, such as :func:`pvq.calibration_tokens` makes. Each window
            gets noise of its own.
        skip: as for :func:`pvq.quantize_model`; these layers are not measured.
        embeddings: as there.
        head: as there.
        loss: ``"kl"``, the divergence from what the model predicts now, or ``"nll"``, the increase
            of the negative log-likelihood of the tokens.
        levels: relative squared sizes of the noise, each above 0 and up to 1.
        source: of the tokens, in words.
        seed: of the noise.
        progress: whether to show a bar on stderr.

    Returns:
        The increases, for :func:`pvq.allocate`.

    Raises:
        TypeError: if ``model``, ``tokens`` or ``skip`` is of the wrong type.
        ValueError: on an unknown loss, a level out of range, no window of two tokens, a loss that
            is not finite, or layers that :func:`pvq.quantize_model` refuses whatever the code.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"tokens is a {type(tokens).__name__}, expected a tensor [windows, length] of token "
            "ids: pvq.calibration_tokens makes one of a text"
        )
    plan = make_plan(model, _ANY, skip=skip, embeddings=embeddings, head=head)
    return measure_targets(
        *(model, plan.targets, tokens),
        loss=loss,
        levels=levels,
        source=source,
        seed=seed,
        progress=progress,
    )
