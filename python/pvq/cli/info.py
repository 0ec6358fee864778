"""What is inside a quantized checkpoint, or, without one, what this installation offers."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from pvq import _core
from pvq.cli.models import add_device, add_run_time, chosen_device
from pvq.linear import PVQLinear
from pvq.load import check_exists, load
from pvq.modules import dense_nbytes, quantized_modules
from pvq.sizes import megabytes

NAME = "info"
HELP = "rates and sizes of a checkpoint; or this installation"
EPILOG = """\
The checkpoint is loaded, so its checksums are verified and the size in memory is measured.

examples:
  pvq info
  pvq info ./quantized --layers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", nargs="?", help="folder of a quantized checkpoint")
    parser.add_argument("--layers", action="store_true", help="a line for each layer")
    add_run_time(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Loads and measures, or describes the installation."""
    return _installation() if args.model is None else _checkpoint(args)


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The result as text."""
    if args.model is None:
        return "\n".join(f"{key:<22}{_text(value)}" for key, value in result.items())
    lines = [
        f"model        {result['architecture']}, {result['parameters'] / 1e6:.2f} M parameters",
        f"quantized    {len(result['layers'])} layers, {result['weights'] / 1e6:.2f} M weights at "
        f"{result['bits_per_weight']:.4f} bits (codes, scales, padding)",
        f"codes        {', '.join(sorted({layer['description'] for layer in result['layers']}))}",
        f"on disk      {megabytes(result['nbytes_on_disk'])}: codes "
        f"{megabytes(result['quantized_nbytes'])}, dense parts {megabytes(result['dense_nbytes'])}",
        f"in memory    {megabytes(result['resident_nbytes'])} on {result['device']} with layout "
        f"{', '.join(sorted({layer['layout'] for layer in result['layers']}))}; "
        f"{megabytes(result['quantized_nbytes'] + result['dense_nbytes'])} with --layout stored",
    ]
    rounded = sorted(
        {
            round(layer["bits_per_activation"], 4)
            for layer in result["layers"]
            if layer["bits_per_activation"] is not None
        }
    )
    if rounded:
        lines.append(
            f"activations  points of pyramids, {', '.join(map(str, rounded))} bits with amplitudes"
        )
    if args.layers:
        lines += [
            "",
            f"{'layer':<44}{'shape':>14}  {'code':<24}{'bits':>9}{'bytes':>12}{'in memory':>12}  "
            "layout",
        ]
        lines += [
            f"{layer['name']:<44}{'x'.join(map(str, layer['shape'])):>14}  "
            f"{layer['description']:<24}{layer['bits_per_weight']:>9.4f}{layer['nbytes']:>12}"
            f"{layer['resident_nbytes']:>12}  {layer['layout']}"
            for layer in result["layers"]
        ]
    return "\n".join(lines)


def _installation() -> dict[str, Any]:
    return {
        **_core.build_info(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "environment": {
            name: os.environ[name] for name in ("PVQ_CPU", "PVQ_DEBUG") if name in os.environ
        },
    }


def _checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    name = args.model
    check_exists(name)
    device = chosen_device(args.device)
    model = load(name, device=device, layout=args.layout, activations=args.activations)
    layers = []
    for layer_name, module in quantized_modules(model):
        if isinstance(module, PVQLinear):
            shape = (module.out_features, module.in_features)
        else:
            shape = (module.num_embeddings, module.embedding_dim)
        layers.append(
            {
                "name": layer_name,
                "kind": "linear" if isinstance(module, PVQLinear) else "embedding",
                "shape": list(shape),
                "description": module.config.code.describe(),
                **module.config.to_dict(),
                "bits_per_weight": 8 * module.nbytes / (shape[0] * shape[1]),
                "bits_per_activation": module.bits_per_activation,
                "nbytes": module.nbytes,
                "resident_nbytes": module.resident_nbytes,
                "layout": module.layout,
            }
        )
    weights = sum(layer["shape"][0] * layer["shape"][1] for layer in layers)
    quantized = sum(layer["nbytes"] for layer in layers)
    dense = dense_nbytes(model)
    folder = Path(name)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {
        "model": name,
        "device": str(device),
        "architecture": type(model).__name__,
        "parameters": weights + sum(p.numel() for p in set(model.parameters())),
        "weights": weights,
        "bits_per_weight": 8 * quantized / weights,
        "nbytes_on_disk": sum(path.stat().st_size for path in files),
        "quantized_nbytes": quantized,
        "dense_nbytes": dense,
        "resident_nbytes": sum(layer["resident_nbytes"] for layer in layers) + dense,
        "layers": layers,
    }


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return str(value)
