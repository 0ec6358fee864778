"""How the GPU products share out their work, against Python's integers."""

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 2**31 - 1


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of tests/emulation/work_split.cpp."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    target = tmp_path_factory.mktemp("work") / "work_split"
    source = ROOT / "tests/emulation/work_split.cpp"
    subprocess.run(
        [compiler, "-std=c++17", f"-I{ROOT}/csrc", str(source), "-o", str(target)], check=True
    )
    return target


def test_divisors(program):
    draw = random.Random(3)
    pairs = [(n, d) for d in range(1, 70) for n in range(300)]
    ends = [1, 2, 3, 5, 7, 641, 65535, 65536, 65537, 2**30 - 1, 2**30, 2**30 + 1, MOST - 1, MOST]
    for d in ends + [draw.randint(1, 2 ** draw.randint(1, 31) - 1) for _ in range(3000)]:
        last = MOST // d * d  # where a quotient that is a little off would show
        near = [0, 1, d - 1, d, last - 1, last, MOST, draw.randint(0, MOST)]
        pairs += [(n, d) for n in near]
    text = "".join(f"{n} {d}\n" for n, d in pairs)
    done = subprocess.run(
        [str(program), "divide"], input=text, capture_output=True, text=True, check=True
    )
    found = [int(line) for line in done.stdout.split()]
    assert found == [n // d for n, d in pairs]


@pytest.mark.parametrize(
    ("groups", "group_steps", "blocks"),
    [(1, 1, 1), (5, 3, 4), (128, 4, 132), (7, 100, 132), (133, 8, 132), (3, 5, 15), (1000, 28, 132),
     (76_000, 28_000, 132)],
)  # fmt: skip
def test_shares(program, groups, group_steps, blocks):
    steps = groups * group_steps
    done = subprocess.run(
        [str(program), "share", str(steps), str(blocks), str(group_steps)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    firsts, lasts = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    runs = [end - begin for begin, end in itertools.pairwise(firsts)]
    assert (firsts[0], firsts[-1]) == (0, steps)
    assert min(runs) >= 1
    assert max(runs) - min(runs) <= 1
    for block, last in enumerate(lasts):
        end = ((firsts[block + 1] - 1) // group_steps + 1) * group_steps
        assert firsts[last] < end <= firsts[last + 1]
