"""Quality against bits as a picture: a colour for each code, a marker for each rounding method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MARKERS = "os^vDPX*<>"


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws KL divergence (logarithmic) against the stored bits a weight.

    Args:
        rows: of a :class:`pvq.compare.Comparison`; those with a problem are left out.
        file: to write; its ending chooses the format, such as ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if no row has figures, or matplotlib does not know the format.
        OSError: if the file cannot be written.
    """
    pyplot = import_pyplot()
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if "problem" not in row:
            points = curves.setdefault((row["code"], row["method"]), [])
            points.append((row["bits_per_weight"], row["kl_divergence"]))
    if not curves:
        raise ValueError("there is nothing to plot: no cell of the comparison could be run")
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    codes, methods = map(dict.fromkeys, zip(*curves, strict=True))
    colors = {code: f"C{i % 10}" for i, code in enumerate(codes)}
    markers = {method: _MARKERS[i % len(_MARKERS)] for i, method in enumerate(methods)}
    for (code, method), points in curves.items():
        bits, divergence = zip(*sorted(set(points)), strict=True)
        axes.plot(bits, divergence, color=colors[code], marker=markers[method])
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight, everything stored")
    axes.set_ylabel("KL divergence from the original, nats a token")
    axes.grid(alpha=0.3, which="both")
    # A legend of codes and of methods, not of each curve; inside it would hide curves.
    keys = [axes.plot([], [], color=color, label=code)[0] for code, color in colors.items()]
    keys += [
        axes.plot([], [], color="gray", linestyle="", marker=marker, label=method)[0]
        for method, marker in markers.items()
    ]
    figure.legend(handles=keys, loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def check_format(file: Path) -> None:
    """Says so before the work if there is no such format.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
        ValueError: if it does not know the ending of ``file``.
    """
    import_pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix and file.suffix[1:].lower() not in formats:
        raise ValueError(f"{file} has an unknown format: expected one of {', '.join(formats)}")


def import_pyplot() -> Any:
    """matplotlib.pyplot, drawing to files only.

    Raises:
        ImportError: if matplotlib is not installed; the text says how to get it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'pvq[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
