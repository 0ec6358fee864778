"""Matrices, activations and exact results that the tests of both product layouts share.

Run as a program, it computes every product of every case and saves them:

    PVQ_CPU=avx2 python tests/products.py FILE

so that a test can compare all instruction sets of the machine, which are chosen at import.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
import reference
import torch

from pvq import _core, build_info

OPS = torch.ops.pvq
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below, at and above every block of tokens that a kernel has (1 to 12, 16, 96).
TOKENS = (1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 33, 70, 100)


@dataclass(frozen=True)
class Case:
    """A random matrix; weights are normal to the power `power`: 1 has few outliers, 5 has many."""

    dim: int
    pulses: int
    rows: int
    groups: int
    gain_bits: int = 4
    power: int = 1

    @property
    def cols(self) -> int:
        return self.dim * self.groups

    @cache  # noqa: B019  a case is a constant
    def code(self) -> tuple:
        """The arguments that describe the matrix to an operator; some groups and a row are zero."""
        random = torch.Generator().manual_seed(self.dim * 1000 + self.rows)
        w = 0.02 * torch.randn(self.rows, self.cols, generator=random) ** self.power
        w.view(self.rows, self.groups, self.dim)[:: 1 + self.rows // 7, ::5] = 0
        w[self.rows // 2] = 0
        stored = OPS.quantize(w, self.dim, self.pulses, self.gain_bits, "lloyd")
        return *stored, self.dim, self.pulses, self.gain_bits, "lloyd"


CASES = (
    Case(2, 3, 33, 7),
    Case(3, 5, 17, 11),
    Case(8, 10, 67, 23),
    Case(12, 20, 16, 9),
    Case(16, 27, 130, 40),
    Case(16, 27, 1, 1, gain_bits=0),
    Case(24, 40, 15, 5),
    Case(32, 54, 64, 11, gain_bits=2),
    Case(64, 96, 48, 5),
    Case(255, 300, 5, 2),
    # 4-bit planes with many outliers, 8-bit planes, 8-bit planes with many outliers
    Case(16, 27, 40, 21, power=5),
    Case(64, 149, 31, 3, power=3),
    Case(8, 36, 35, 20),
    Case(16, 58, 50, 13),
    Case(3, 15, 20, 10),
    Case(2, 300, 19, 6),
    Case(16, 1000, 21, 6, power=5),
)


@cache
def dense(case: Case) -> np.ndarray:
    """The matrix in float64, from the definition."""
    index, gain, row_scale, dim, pulses, gain_bits, law = case.code()
    y = OPS.decode(index, dim, pulses, case.groups).numpy()
    gains = np.zeros((case.rows, case.groups), dtype=np.int64)
    if gain_bits:
        gains = np.array([reference.unpack(r, gain_bits, case.groups) for r in gain.numpy()])
    levels = _core.gain_levels(dim, case.cols, gain_bits, law)
    return reference.dequantize(y, gains, row_scale.double().numpy(), levels)


def activations(tokens: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(tokens * 10_000 + size)
    return torch.randn(tokens, size, generator=random).to(dtype)


def assert_as_good_as_torch(result: torch.Tensor, x: torch.Tensor, w: np.ndarray) -> None:
    """`result` is x @ w.T as exactly as torch's own product in x's dtype, within a factor.

    At most twice torch's root mean square error and four times its largest (which is a noisier
    number), plus the rounding of the result; in float32 four roundings, because torch sums a few
    terms almost exactly.
    """
    exact = x.double().numpy() @ w.T
    assert result.dtype == x.dtype
    assert result.shape == exact.shape
    if not exact.size:
        return
    error = result.double().numpy() - exact
    theirs = (x @ torch.from_numpy(w).to(x.dtype).T).double().numpy() - exact
    eps = torch.finfo(x.dtype).eps * (4 if x.dtype == torch.float32 else 1)
    for factor, size in ((2, lambda e: np.sqrt(np.mean(e**2))), (4, lambda e: np.abs(e).max())):
        allowed = factor * size(theirs) + eps * size(exact)
        assert size(error) <= allowed, f"error {size(error):.3g}, allowed {allowed:.3g}"


def all_products(case: Case) -> dict[tuple, torch.Tensor]:
    """The result of every operator, by its name, dtype and number of tokens."""
    code = case.code()
    planes = (*OPS.to_planes(*code, case.cols), case.rows, case.dim)
    results = {}
    for dtype in DTYPES:
        for tokens in (1, 16) if dtype == torch.float16 else TOKENS:  # computed as float32
            x, g = activations(tokens, case.cols, dtype), activations(tokens, case.rows, dtype)
            for name, result in (
                ("matmul", OPS.matmul(x, *code)),
                ("matmul_planes", OPS.matmul_planes(x, *planes)),
                ("matmul_transposed", OPS.matmul_transposed(g, *code, case.cols)),
                ("matmul_planes_transposed", OPS.matmul_planes_transposed(g, *planes)),
            ):
                results[name, dtype, tokens] = result
    return results


def main() -> None:
    results = {case: all_products(case) for case in CASES}
    torch.save(
        {
            "instruction_set": build_info()["cpu_instruction_set"],
            "results": [list(results[case].items()) for case in CASES],
        },
        sys.argv[1],
    )


if __name__ == "__main__":
    main()
