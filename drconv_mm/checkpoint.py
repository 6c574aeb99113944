"""Checkpoints: read so that the file can't run code, stripped to what its users need, and named by their hash."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from .files import write_whole

# What is kept of a checkpoint's meta. Its config and log name folders of whoever trained it.
META = ("dataset_meta", "epoch", "iter", "seed", "mmengine_version")

# mmengine keeps histories of logged numbers and schedules beside the weights: NumPy arrays, and methods that `getattr`
# would fetch. They are read as stand-ins: nothing of these names is imported or called.
_INERT_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


class CheckpointError(ValueError):
    """A checkpoint can't be read, or can't be published."""


class _Inert:
    """Takes what is built of a log's or a schedule's part, and does nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object):
        pass


def _stand_in(name: str) -> type:
    module, _, last = name.rpartition(".")
    return type(last, (_Inert,), {"__module__": module})


_STAND_INS = [_stand_in(name) for name in _INERT_NAMES]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint by PyTorch's restricted unpickler, which executes nothing that a file names.

    Args:
        path: A file that mmengine or ``torch.save`` wrote: a dict with ``state_dict``, or a state dict alone.

    Returns:
        The dict; ``state_dict`` holds tensors on the CPU, by name without ``module.`` in front, logs and
        schedules are unusable stand-ins.

    Raises:
        CheckpointError: The file is missing, is not whole, names something that no checkpoint needs, or has no weights;
            torch is older than 2.6.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is no file; expected a .pth that train.py wrote")
    try:
        from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} can't be read safely by torch {torch.__version__}; upgrade to 2.6 or newer"
        ) from error
    with safe_globals(_STAND_INS):
        try:
            strange = get_unsafe_globals_in_checkpoint(path)
            content = None if strange else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is cut or made up can fail in any way
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"checkpoint {str(path)!r} can't be read ({reason}); expected a whole file in PyTorch's format of "
                "version 1.6 and later: get it again, or save it anew where it was made"
            ) from error
    if strange:
        raise CheckpointError(
            f"checkpoint {str(path)!r} names {', '.join(sorted(strange))}, which weights don't need, so it was refused "
            "and nothing of it was run; where you trust it, save its state_dict and meta alone"
        )
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not (isinstance(state, dict) and state and all(map(_is_weight, state.items()))):
        raise CheckpointError(
            f"checkpoint {str(path)!r} has no state_dict of tensors by name; expected one of train.py or torch.save"
        )
    weights = OrderedDict((name.removeprefix("module."), value) for name, value in state.items())
    if hasattr(state, "_metadata"):  # versions of modules, by which old parameter names are brought up to date
        weights._metadata = state._metadata
    return {**(content if state is not content else {}), "state_dict": weights}


def _is_weight(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], torch.Tensor)


def refuse_nan(checkpoint: dict[str, Any]) -> None:
    """For weights that are to be published.

    Raises:
        CheckpointError: A tensor holds NaN.
    """
    for name, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and value.isnan().any():
            raise CheckpointError(f"{name} holds NaN: the training diverged; publish an earlier checkpoint")


def strip_checkpoint(checkpoint: dict[str, Any], half: bool = False) -> dict[str, Any]:
    """What users of the weights need: ``state_dict`` and some of ``meta``, in plain types.

    Optimizer, schedulers and message hub are left out, and so is ``ema_state_dict``: of a training with mmengine's
    EMAHook, ``state_dict`` has the averaged weights, those that were evaluated.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        half: Store weights in half the bytes, see `store_half`.
    """
    weights = checkpoint["state_dict"]
    # A tensor may be a view of a larger storage, all of which would be saved.
    state = OrderedDict(
        (name, (store_half(value) if half else value).detach().clone(memory_format=torch.contiguous_format))
        for name, value in weights.items()
    )
    if hasattr(weights, "_metadata"):
        state._metadata = {name: dict(version=entry.get("version")) for name, entry in weights._metadata.items()}
    found = dict(checkpoint.get("meta") or {})
    if isinstance(found.get("dataset_meta"), dict):
        found["dataset_meta"] = {key: value for key, value in found["dataset_meta"].items() if _is_plain(value)}
    meta = {key: found[key] for key in META if key in found and _is_plain(found[key])}
    return {"meta": meta, "state_dict": state}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def store_half(value: torch.Tensor) -> torch.Tensor:
    """The tensor in fp16 where that is harmless, else as it is; ``load_state_dict`` makes it float32 again.

    Vectors (norms and their statistics, biases) stay: they are few, and a variance may exceed fp16's 65504 or be too
    small for it. So does a weight of which an element would be off by more than 2**-11 of the largest one's magnitude.
    """
    if value.dtype != torch.float32 or value.dim() < 2 or not value.numel():
        return value
    stored = value.half()
    harmless = (stored.float() - value).abs().max() <= 2**-11 * value.abs().max()
    return stored if harmless else value


def sha256(path: Path) -> str:
    """Of a file, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checkpoint(checkpoint: dict[str, Any], out: Path) -> Path:
    """Writes a stripped checkpoint to ``<out>-<first 8 digits of its sha256>.pth``, OpenMMLab's form of names.

    The same content gives the same bytes, whatever the name. The file appears whole or not at all.

    Args:
        checkpoint: As `strip_checkpoint` returns it.
        out: Path of the file, less the hash; ``.pth`` may be there.

    Returns:
        The path; where a file of this content was there already, it is left alone.

    Raises:
        CheckpointError: Another file has that name, or it can't be written.
    """
    buffer = io.BytesIO()  # given a path, torch.save would put its name into the bytes
    torch.save(checkpoint, buffer)
    data = buffer.getvalue()
    path = out.with_name(f"{out.name.removesuffix('.pth')}-{hashlib.sha256(data).hexdigest()[:8]}.pth")
    if path.exists():
        if path.is_file() and path.read_bytes() == data:
            return path
        raise CheckpointError(f"{str(path)!r} is there and holds something else; move it away, or give another name")
    try:
        write_whole(path, data)
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} can't be written ({error.strerror}); nothing was left behind") from error
    return path
