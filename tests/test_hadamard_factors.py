"""Hadamard matrices, exactly, and which blocks there are."""

import hashlib

import numpy as np
import pytest

from pvq.rotation import default_block, hadamard_matrix, supported_block

ORDERS = [4 * odd for odd in range(3, 64, 2) if odd not in (47, 59)]
# Of all of them in turn: the matrices are part of the file format.
MATRICES_SHA256 = "82f63fbca11f44f01d88976fad36d1c6"


@pytest.mark.parametrize("order", [1, 2, 4, 8, 64, *ORDERS])
def test_matrix_is_hadamard(order):
    h = hadamard_matrix(order).astype(np.int64)
    assert set(np.unique(h)) <= {-1, 1}
    assert np.array_equal(h @ h.T, order * np.eye(order, dtype=np.int64))


def test_orders_of_real_models_are_supported():
    for order in (12, 20, 28, 36, 40, 44, 52, 60, 76, 92, 108, 116, 140, 156, 172):
        assert supported_block(order)
    for cols in (14336, 28672, 11008, 13824, 5120, 53248, 27648, 22016, 12288, 1536):
        assert supported_block(cols)


@pytest.mark.parametrize("block", [0, -4, 3, 6, 18, 188, 236, 376, 2**16, 12 * 2**13, 268, 2**40])
def test_unsupported_blocks(block):
    assert not supported_block(block)
    with pytest.raises(ValueError, match="no Hadamard matrix"):
        hadamard_matrix(block)


@pytest.mark.parametrize(("factor", "log2"), [(12, 1), (20, 3), (28, 2), (172, 1), (36, 4)])
def test_matrix_is_kronecker_product(factor, log2):
    sylvester = np.ones((1, 1), dtype=np.int64)
    for _ in range(log2):
        sylvester = np.kron(sylvester, [[1, 1], [1, -1]])
    expected = np.kron(hadamard_matrix(factor), sylvester)
    assert np.array_equal(hadamard_matrix(factor << log2), expected)


def test_paley_matrices_from_squares():
    """Orders 12 (q = 11, first construction) and 36 (q = 17, second) from Legendre symbols."""

    def legendre(a, q):
        a %= q
        return 0 if a == 0 else 1 if pow(a, (q - 1) // 2, q) == 1 else -1

    def core(q, edge):
        s = np.array([[legendre(a - b, q) for b in range(q)] for a in range(q)])
        s = np.vstack([np.ones((1, q), dtype=int), s])
        return np.hstack([np.array([[0], *[[edge]] * q]), s])

    assert np.array_equal(hadamard_matrix(12), core(11, -1) + np.eye(12, dtype=int))
    second = np.kron(core(17, 1), [[1, 1], [1, -1]]) + np.kron(np.eye(18), [[1, -1], [-1, -1]])
    assert np.array_equal(hadamard_matrix(36), second)


def test_matrices_stay_as_files_have_them():
    digest = hashlib.sha256()
    for order in ORDERS:
        digest.update(hadamard_matrix(order).tobytes())
    assert digest.hexdigest()[:32] == MATRICES_SHA256


def test_default_block():
    expected = {4096: 1024, 14336: 1024, 11008: 256, 18944: 512, 768: 256, 2560: 512, 27648: 1024}
    expected |= {13696: 128, 1152: 576, 4304: 16, 1920: 960, 12: 12, 7: 1, 1: 1, 2: 2, 94: 2}
    assert {cols: default_block(cols) for cols in expected} == expected
    for cols in range(1, 3000):
        block = default_block(cols)
        divisors = [b for b in range(1, 1025) if cols % b == 0 and supported_block(b)]
        powers = [b for b in divisors if b & (b - 1) == 0 and b >= 256]
        assert block == max(powers or divisors)
    with pytest.raises(ValueError, match="cols is 0"):
        default_block(0)
