"""The table of a comparison as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from pvq.sizes import megabytes

_HEADER = """\
| code | rounding | asked | b/w stored | bytes | perplexity | increase | KL | top-1 | s | peak |
|---|---|---|---|---|---|---|---|---|---|---|"""


def markdown(reference: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for the original, one for each cell, and the convention of the figures above."""
    lines = [_HEADER]
    if reference:
        lines.insert(0, f"{reference['convention']}\n")
        lines.append(
            f"| original | | | 16 | {reference['original_nbytes']:,} "
            f"| {reference['reference_perplexity']:.3f} | | 0 | 100 % | | |"
        )
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Mapping[str, Any]) -> str:
    asked = f"{row['method']} | {row['asked']:g}"
    if "problem" in row:
        return f"| {row['code']} | {asked} | - | - | {row['problem']} | | | | | |"
    peak = "-" if row["peak_nbytes"] is None else megabytes(row["peak_nbytes"])
    return (
        f"| {row['description']} | {asked} | {row['bits_per_weight']:.4f} | {row['nbytes']:,} "
        f"| {row['perplexity']:.3f} | {row['perplexity_increase']:+.2%} "
        f"| {row['kl_divergence']:.5f} | {row['top1_agreement']:.2%} | {row['seconds']:.1f} "
        f"| {peak} |"
    )
