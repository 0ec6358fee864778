"""Rules of the GPU operators of table codes: shapes and gradients, without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

ops = torch.ops.pvq


def fragment_bytes(rows: int, cols: int, bits: int) -> int:
    return 1024 + -(-rows // 16) * 16 * cols * bits // 8


def operands(rows: int, cols: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    fragments = torch.zeros(fragment_bytes(rows, cols, bits), dtype=torch.uint8)
    return fragments, torch.zeros(rows, dtype=torch.bfloat16)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", [0, 5, 48])
def test_shapes(bits, rows):
    with FakeTensorMode():
        fragments, scale = operands(rows, 256, bits)
        code = ops.table_codes(fragments, rows, 256, bits)
        assert code.shape == (rows, 256 * bits // 8)
        assert code.dtype == torch.uint8
        table = torch.zeros(256, 2 if bits == 4 else 4, dtype=torch.int8)
        assert ops.table_fragments(code, table, bits).shape == fragments.shape
        ids = torch.zeros(7, dtype=torch.int64)
        found = ops.table_rows(fragments, scale, ids, bits, 256, torch.bfloat16, 64, 1)
        assert found.shape == (7, 256)
        assert found.dtype == torch.bfloat16
        for shape in [(), (3,), (2, 1)]:
            x = torch.zeros(*shape, 256, dtype=torch.float16)
            y = ops.table_matmul_fragments(x, fragments, scale, bits, 64, 1, bits == 3)
            assert y.shape == (*shape, rows)
            assert y.dtype == torch.float16
            point, amplitude = ops.activation_points(x, 128, 353)
            y = ops.table_matmul_points(
                point, amplitude, fragments, scale, bits, 353, torch.bfloat16
            )
            assert y.shape == (*shape, rows)
            assert y.dtype == torch.bfloat16
            y = ops.overlap_matmul_points(point, amplitude, fragments, scale, 4, 75, torch.float16)
            assert y.shape == (*shape, rows)


@pytest.mark.parametrize("block", [0, 64])
def test_gradient_has_the_shape_of_the_input(block):
    with FakeTensorMode():
        fragments, scale = operands(48, 256, 3)
        for shape in [(), (3,), (2, 5)]:
            x = torch.zeros(*shape, 256, dtype=torch.bfloat16, requires_grad=True)
            y = ops.table_matmul_fragments(x, fragments, scale, 3, block, 1)
            (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            assert grad.shape == x.shape
            assert grad.dtype == torch.bfloat16
            assert grad.requires_grad is False, "a linear map: its gradient does not depend on x"


def test_gradient_is_the_product_with_the_expanded_weights_rotated_back():
    fragments, scale = operands(48, 256, 2)
    x = torch.zeros(3, 256, dtype=torch.float16)
    g = torch.zeros(3, 48, dtype=torch.float16)

    def vector_jacobian(x, g):
        x = x.requires_grad_()
        y = ops.table_matmul_fragments(x, fragments, scale, 2, 64, 1)
        return torch.autograd.grad(y, x, g)

    with FakeTensorMode(allow_non_fake_inputs=True):
        graph = make_fx(vector_jacobian)(torch.empty_like(x), torch.empty_like(g))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    expected = ["table_matmul_fragments", "table_expand", "mm", "hadamard"]
    assert [name.split(".")[1] for name in names if name.split(".")[1] in expected] == expected


def test_product_is_captured_in_one_graph():
    fragments, scale = operands(48, 256, 2)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return lambda *_: (torch.zeros(3, 48),)

    def layer(x):
        return ops.table_matmul_fragments(x, fragments, scale, 2, 64, 1) + 1

    compiled = torch.compile(layer, fullgraph=True, backend=keep)
    compiled(torch.zeros(3, 256, dtype=torch.float16))
    assert len(graphs) == 1
