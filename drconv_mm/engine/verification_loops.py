"""Several verification sets after one another, as face recognition reports them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import LOOPS
from mmengine.runner import Runner, TestLoop, ValLoop


class _Several:
    """Makes a loop of mmengine's run once a file; the first is the loop that others see."""

    _loop: type[ValLoop] | type[TestLoop]

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict, ann_files: Sequence[str], fp16: bool = False):
        if not isinstance(dataloader, dict) or not isinstance(evaluator, dict):
            raise TypeError(
                f"{type(self).__name__}: the dataloader and the evaluator must be dicts, to be set for each file"
            )
        names = [Path(file).stem for file in ann_files]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"ann_files must be one or more files of different names, got {list(ann_files)}")
        loops = []
        for file, name in zip(ann_files, names, strict=True):
            loader, metric = copy.deepcopy(dataloader), copy.deepcopy(evaluator)
            loader["dataset"]["ann_file"] = str(file)
            metric["prefix"] = name
            loops.append((loader, metric))
        super().__init__(runner, *loops[0], fp16)
        self._others = [self._loop(runner, *loop, fp16) for loop in loops[1:]]

    def run(self) -> dict:
        """Evaluates; the metrics of each file have its name before them."""
        metrics = dict(super().run())
        for loop in self._others:
            metrics.update(loop.run())
        return metrics


@LOOPS.register_module()
class VerificationValLoop(_Several, ValLoop):
    """mmengine's ``ValLoop`` over several sets.

    ``val_cfg = dict(type='drconv_mm.VerificationValLoop', ann_files=['lfw.bin', 'cfp_fp.bin'])``; the metrics of
    ``lfw.bin`` are logged as ``lfw/accuracy`` and so on.

    Args:
        runner: The runner.
        dataloader: Config of the loader.
        evaluator: Config of the metric.
        ann_files: The ``ann_file`` of the data set, each in turn.
        fp16: Whether to run in half precision.

    Raises:
        TypeError: The loader or the metric is not given as a config.
        ValueError: No file, or two of one name.
    """

    _loop = ValLoop


@LOOPS.register_module()
class VerificationTestLoop(_Several, TestLoop):
    """mmengine's ``TestLoop`` over several sets, see `VerificationValLoop`."""

    _loop = TestLoop
