"""The shared product of joined matrices: who is served, what is kept, what is refused."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pvq.codes.joined import SharedProduct

W = torch.arange(24.0).view(6, 4)  # members: rows 0-1, 2-4, 5
PARTS = (slice(0, 2), slice(2, 5), slice(5, 6))


def integers(rows=2, **options):
    """An input whose products are exact."""
    return torch.randint(-99, 99, (rows, 4), **options).float()


class Counted:
    """x @ W.T, and how often it was computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x, *arguments):
        self.calls += 1
        return x @ W.T


@pytest.fixture
def shared():
    return SharedProduct(Counted(), PARTS)


def expected(x, member):
    return x @ W[PARTS[member]].T


def kept(shared):
    """Outputs that wait."""
    return 0 if shared._waiting is None else len(shared._waiting.outputs)


def test_members_are_served_from_one_product(shared):
    for step in range(3):
        x = integers()
        for member in ((0, 1, 2), (2, 0, 1), (1, 2, 0))[step]:
            assert torch.equal(shared.output(member, x), expected(x, member))
        assert shared.product.calls == step + 1
        assert shared._waiting is None


def test_another_input_is_computed_anew(shared):
    x = integers()
    for other in (x.clone(), x[:], x.detach(), integers()):
        shared.output(0, x)
        calls = shared.product.calls
        assert torch.equal(shared.output(1, other), expected(other, 1))
        assert shared.product.calls == calls + 1
        assert torch.equal(shared.output(1, x), expected(x, 1))


def test_an_input_that_was_changed_in_place_is_computed_anew(shared):
    x = integers()
    shared.output(0, x)
    x.mul_(2)
    assert torch.equal(shared.output(1, x), expected(x, 1))
    assert torch.equal(shared.output(2, x), expected(x, 2))
    assert shared.product.calls == 2
    shared.output(0, x)
    x.data = integers()
    assert torch.equal(shared.output(1, x), expected(x, 1))


def test_a_member_that_asks_again_begins_a_new_round(shared):
    x = integers()
    shared.output(0, x)
    shared.output(1, x)
    shared.output(0, x)
    assert shared.product.calls == 2
    assert kept(shared) == 2
    shared.output(1, x)
    shared.output(2, x)
    assert shared.product.calls == 2


def test_an_id_that_is_used_again_is_another_input(shared):
    for _ in range(50):  # freed and made again, often at the same address
        x = integers()
        assert torch.equal(shared.output(0, x), expected(x, 0))
        del x


def test_nothing_is_kept_once_all_are_served_or_the_input_is_gone(shared):
    x = integers()
    outputs = [weakref.ref(shared.output(member, x)) for member in range(3)]
    assert all(output() is None for output in outputs)
    assert shared._waiting is None
    shared.output(0, x)
    waiting = shared._waiting.outputs
    alive = weakref.ref(x)
    assert len(waiting) == 2
    del x
    gc.collect()
    assert alive() is None
    assert not waiting


def test_an_exception_between_members_does_no_harm(shared):
    def block(fails):
        x = torch.ones(1, 4)
        first = shared.output(0, x)
        if fails:
            raise ZeroDivisionError
        return first, shared.output(1, x), shared.output(2, x)

    for fails in (True, False, True, True, False):
        if fails:
            with pytest.raises(ZeroDivisionError):
                block(fails)
            gc.collect()
            assert kept(shared) == 0
        else:
            for member, output in enumerate(block(fails)):
                assert torch.equal(output, expected(torch.ones(1, 4), member))

    def refuse(x):
        raise ZeroDivisionError

    broken = SharedProduct(refuse, PARTS)
    with pytest.raises(ZeroDivisionError):
        broken.output(0, torch.ones(1, 4))
    assert broken._waiting is None


def test_inputs_whose_gradient_is_wanted_are_refused(shared):
    x = integers().requires_grad_()
    assert shared.output(0, x) is None
    with torch.no_grad():
        assert torch.equal(shared.output(0, x), expected(x, 0))
    assert shared.output(1, x) is None
    with torch.no_grad():
        assert torch.equal(shared.output(1, x), expected(x, 1))
        assert torch.equal(shared.output(2, x), expected(x, 2))
    assert shared.product.calls == 1


def test_arguments_are_part_of_the_question(shared):
    x = integers()
    shared.output(0, x, "int8")
    shared.output(1, x, "float")
    assert shared.product.calls == 2
    shared.output(0, x, "float")
    assert shared.product.calls == 2


def test_inputs_that_cannot_be_recognised_are_refused(shared):
    with torch.inference_mode():
        x = integers()
        assert shared.output(0, x) is None, "x has no version"
        y = integers()
    assert shared.output(0, y) is None
    outside = integers()
    with torch.inference_mode():
        assert torch.equal(shared.output(0, outside), expected(outside, 0))
    assert torch.equal(shared.output(1, outside), expected(outside, 1))
    assert not shared.output(1, outside).is_inference()
    with FakeTensorMode():
        assert shared.output(0, torch.zeros(2, 4)) is None


def test_threads_never_get_the_output_of_another_input(shared):
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(200):
            x = integers(1, generator=generator)
            for member in range(3):
                if not torch.equal(shared.output(member, x), expected(x, member)):
                    wrong.append((seed, member))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_do_not_take_what_waits(shared):
    x = integers()
    shared.output(0, x)
    assert copy.deepcopy(shared)._waiting is None
    assert kept(shared) == 2
