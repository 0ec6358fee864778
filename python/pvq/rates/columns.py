"""fill_columns: a rate for each band of columns of a layer, by what errors there cost.

Under block feedback the loss of a layer is the sum over blocks of columns of their rounding error
times the diagonal of the block's Schur complement in the Hessian (:mod:`pvq.rounding.gptq`), which
is small for the columns that are rounded first, because all others make up for their errors. An
error is in proportion to the energy of the weights, and at high rate it falls as 4^-R. With stake_i
the product of both, in the mean of band i, the loss is least if this band gets

    R_i = R + log4(stake_i / geometric mean of all stakes),

water-filling. Rates of a pyramid code come in steps, and the bits of a row in whole bytes, so the
best of all settings within the bytes is found instead, by the multiple-choice knapsack. This gains
twice: an index takes whole bits, so that some steps have less error for their bits than others.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pvq.codes import stored_nbytes
from pvq.codes.bands import BandsCode
from pvq.codes.pyramid import PyramidCode, expected_error, reach
from pvq.config import PVQConfig
from pvq.rates.knapsack import choose

LOW = 1.0  # bits a weight that a band gets at least, unless fewer were asked for
# Rates that are tried, around that of the layer.
_BELOW, _ABOVE, _STEP = 1.0, 1.5, 1 / 16


def fill_columns(config: PVQConfig, stake: Tensor) -> PVQConfig:
    """Shares the bytes of a row out over its bands, so that the expected loss is least.

    Args:
        config: with ``code="bands"`` and the same rate in all bands; bands that have settings of
            their own keep them, and so do other codes.
        stake: [cols], the loss if each column of the rotated matrix were lost: the energy of its
            weights times the price of a squared error there, such as
            :meth:`pvq.rounding.gptq.GPTQ.prices` gives; any floating-point dtype.

    Returns:
        The configuration with a setting for each band. A row takes no more bytes than before.

    Raises:
        ValueError: if ``stake`` is no vector, holds NaN, infinite or negative values, or has a
            number of columns that the code does not fit.
    """
    if stake.ndim != 1:
        raise ValueError(f"stake has shape {list(stake.shape)}, expected [cols]")
    if not torch.isfinite(stake).all() or (stake < 0).any():
        raise ValueError(
            "stake has NaN, infinite or negative values, expected the loss if a column were lost: "
            "check the Hessian and the weights that it comes from"
        )
    cols = len(stake)
    config = config.for_cols(cols)
    code = config.code
    if not isinstance(code, BandsCode) or not code.is_uniform:
        return config
    ladder = _ladder(code.settings[0])
    costs = [
        np.array([_row_nbytes(setting, width) for setting in ladder], dtype=np.int64)
        for width in code.widths(cols)
    ]
    errors = np.array([expected_error(c.dim, c.pulses, c.gain_bits) for c in ladder])
    losses = [float(stake[band].double().sum()) * errors for band in code.limits(cols)]
    allowed = sum(_row_nbytes(code.settings[0], width) for width in code.widths(cols))
    chosen, _ = choose(costs, losses, allowed)
    filled = BandsCode.of_settings([ladder[i] for i in chosen])
    return config.replace(pulses=list(filled.pulses), gain_bits=list(filled.gain_bits))


def _ladder(code: PyramidCode) -> list[PyramidCode]:
    """The settings that a band may get: rates around that of ``code``, and ``code`` itself."""
    least, most = reach(code.dim, None)
    low = max(least, min(LOW, code.bits), code.bits - _BELOW)
    steps = math.floor((min(most, code.bits + _ABOVE) - low) / _STEP)
    settings = {code: None}
    for i in range(steps + 1):
        settings[code.replace(bits=low + i * _STEP)] = None
    return list(settings)


def _row_nbytes(code: PyramidCode, cols: int) -> int:
    """Bytes of the codes of one row."""
    return stored_nbytes(code, 1, cols)
