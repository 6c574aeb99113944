"""Several verification sets after one another, as face recognition reports them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.runner import Runner, TestLoop, ValLoop

from ..registration import register_in


class _Several:
    """Makes one of mmengine's loops go over several files; the first file's loader is the one that others see."""

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict, ann_files: Sequence[str], fp16: bool = False):
        if not isinstance(dataloader, dict) or not isinstance(evaluator, dict):
            raise TypeError(
                f"{type(self).__name__}: dataloader and evaluator must be dicts, which are set for each file"
            )
        names = [Path(file).stem for file in ann_files]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"ann_files must be one or more files of different names, got {list(ann_files)}")
        self._sets = []
        for file, name in zip(ann_files, names, strict=True):
            loader, metric = copy.deepcopy(dataloader), copy.deepcopy(evaluator)
            loader["dataset"]["ann_file"] = str(file)
            metric["prefix"] = name
            super().__init__(runner, loader, metric, fp16)
            self._sets.append((self.dataloader, self.evaluator))
        self.dataloader, self.evaluator = self._sets[0]

    def _run(self, phase: str) -> dict[str, float]:
        """Evaluates all in one epoch, so that hooks get all figures at once."""
        self.runner.call_hook(f"before_{phase}")
        self.runner.call_hook(f"before_{phase}_epoch")
        self.runner.model.eval()
        metrics = {}
        for loader, evaluator in self._sets:
            self.dataloader, self.evaluator = loader, evaluator
            for index, batch in enumerate(loader):
                self.run_iter(index, batch)
            metrics.update(evaluator.evaluate(len(loader.dataset)))
        self.dataloader, self.evaluator = self._sets[0]
        self.runner.call_hook(f"after_{phase}_epoch", metrics=metrics)
        self.runner.call_hook(f"after_{phase}")
        return metrics


@register_in("LOOPS")
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

    def run(self) -> dict[str, float]:
        """Evaluates; the metrics of each file have its name before them."""
        return self._run("val")


@register_in("LOOPS")
class VerificationTestLoop(_Several, TestLoop):
    """mmengine's ``TestLoop`` over several sets, see `VerificationValLoop`."""

    def run(self) -> dict[str, float]:
        """As `VerificationValLoop.run`."""
        return self._run("test")
