"""Hooks for the toolboxes' configs: how the regions are used while training, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..layers.drconv import DRConv2d, observe_regions
from ..registration import register_in
from .regions import RegionRecorder, region_entropy, region_shares

_WINDOW = 10  # observations that a layer is judged by where there are no epochs


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


@register_in("HOOKS")
class RegionStatsHook(Hook):
    """Logs each DRConv layer's share of each region and their entropy, and warns of a layer that uses one region.

    ``custom_hooks = [dict(type='drconv_mm.RegionStatsHook')]``. Scalars ``region/<layer>/entropy`` (in units of
    log m) and ``region/<layer>/share_<j>`` go to the log and the visualizer. A layer in which one region got every
    pixel for a whole epoch, or in a training by iterations in ten observations, is a standard convolution with detours:
    the warning says what to try. In a training by iterations it comes again only if the layer recovered meanwhile.

    Args:
        interval: Iterations between two observations; each costs one argmax a layer.
        shares: Whether the shares are logged beside the entropy.

    Raises:
        ValueError: ``interval`` under 1.
    """

    priority = "BELOW_NORMAL"  # before LoggerHook writes

    def __init__(self, interval: int = 50, shares: bool = True):
        if interval < 1:
            raise ValueError(f"interval must be at least 1 iteration, got {interval!r}")
        self.interval = interval
        self.shares = shares
        self._counts: dict[str, Tensor] = {}
        self._window: dict[str, Tensor] = {}  # all that was observed since layers were last judged
        self._observations = 0
        self._collapsed: set[str] = set()
        self._judged = False
        self._stack = ExitStack()

    def _observe(self, name: str, regions: Tensor, num_regions: int) -> None:
        counts = torch.bincount(regions.flatten(), minlength=num_regions)
        self._counts[name] = self._counts.get(name, 0) + counts

    def before_train(self, runner: Runner) -> None:
        """Says so where there is nothing to observe."""
        if not any(isinstance(module, DRConv2d) for module in runner.model.modules()):
            runner.logger.warning("RegionStatsHook: the model has no DRConv layer, there is nothing to log")

    def before_train_epoch(self, runner: Runner) -> None:
        """Begins the epoch's counts."""
        self._window.clear()
        self._observations = 0
        self._collapsed.clear()
        self._judged = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Begins to observe, every ``interval`` iterations and in an epoch's first."""
        self._stack.close()  # open where an iteration failed
        self._counts.clear()
        if batch_idx % self.interval == 0:
            self._stack.enter_context(observe_regions(_bare(runner.model), self._observe))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Logs what was observed; in a training by iterations judges the layers after each ten observations."""
        self._stack.close()
        if batch_idx % self.interval:
            return
        for name, counts in self._counts_of_all(runner).items():
            self._window[name] = self._window.get(name, 0) + counts
            shares = region_shares(counts)
            scalars = {f"region/{name}/entropy": region_entropy(shares)}
            if self.shares:
                scalars.update({f"region/{name}/share_{j}": float(share) for j, share in enumerate(shares)})
            for key, value in scalars.items():
                runner.message_hub.update_scalar(f"train/{key}", value)
        self._observations += 1
        if isinstance(runner.train_loop, IterBasedTrainLoop) and self._observations == _WINDOW:
            self._judge(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Sums up the epoch in one line a layer, and warns where one region had it all."""
        # In a training by iterations this is its end: fewer than ten observations say little after others.
        if not isinstance(runner.train_loop, IterBasedTrainLoop) or not self._judged:
            self._judge(runner)

    def _counts_of_all(self, runner: Runner) -> dict[str, Tensor]:
        """The pixels of each region over all processes, of each layer that ran in one."""
        layers = {n: m.num_regions for n, m in _bare(runner.model).named_modules() if isinstance(m, DRConv2d)}
        if not layers:
            return {}
        # One tensor for all layers: processes that ran others would wait for each other for ever.
        device = next(runner.model.parameters()).device
        table = torch.zeros(len(layers), max(layers.values()), dtype=torch.long, device=device)
        for row, name in zip(table, layers, strict=True):
            if name in self._counts:
                row[: layers[name]] = self._counts[name]
        all_reduce(table)
        rows = {name: row[: layers[name]] for row, name in zip(table.cpu(), layers, strict=True)}
        return {name: row for name, row in rows.items() if row.any()}

    def _judge(self, runner: Runner) -> None:
        """Sums up in one line a layer, by iterations only where it is another than before, and begins anew."""
        by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
        span = "for the whole epoch" if by_epoch else f"in the last {self._observations} observations"
        for name, counts in self._window.items():
            shares = region_shares(counts)
            line = f"{name}: region entropy {region_entropy(shares):.2f} log m, shares " + " ".join(
                f"{share:.2f}" for share in shares
            )
            collapsed, before = len(shares) > 1 and bool(shares.max() == 1), name in self._collapsed
            if collapsed and not before:
                self._collapsed.add(name)
                runner.logger.warning(
                    f"{line}. One region got every pixel {span}: the layer works as a standard "
                    "convolution. Try a lower learning rate, be it the guide's alone (paramwise_cfg=dict(custom_keys="
                    "{'guide_weight': dict(lr_mult=0.5)})), or leave the layer out"
                )
            elif by_epoch or collapsed != before:
                self._collapsed.discard(name)
                runner.logger.info(line)
        self._judged = True
        self._window.clear()
        self._observations = 0


@register_in("HOOKS")
class RegionVisHook(Hook):
    """Draws the region maps beside the image while validating or testing.

    ``custom_hooks = [dict(type='drconv_mm.RegionVisHook')]``. Pictures go to the visualizer as
    ``regions_<val or test>_<batch>``; its usual backend writes them to ``vis_data/vis_image/`` of the log folder.

    Args:
        interval: Batches between two pictures.
        max_images: Pictures of one validation or test at most.
        layers: Names of the layers to draw; None for all.
        max_layers: Layers in one picture at most, spread evenly over the model.

    Raises:
        ValueError: ``interval`` under 1.
    """

    def __init__(self, interval: int = 50, max_images: int = 8, layers: list[str] | None = None, max_layers: int = 11):
        if interval < 1:
            raise ValueError(f"interval must be at least 1 batch, got {interval!r}")
        self.interval = interval
        self.max_images = max_images
        self.layers = layers
        self.max_layers = max_layers
        self._recorder: RegionRecorder | None = None

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch=None, mode: str = "train") -> None:
        if self._recorder is not None:  # of a batch that failed
            self._recorder.__exit__()
            self._recorder = None
        if mode == "train" or batch_idx % self.interval or batch_idx // self.interval >= self.max_images:
            return
        self._recorder = RegionRecorder(_bare(runner.model), self.layers, self.max_layers)
        self._recorder.__enter__()

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, mode: str = "train") -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.__exit__()
        if not recorder.regions:
            runner.logger.warning(f"RegionVisHook: there is nothing to draw: {recorder.why_empty()}")
            return
        picture = recorder.picture(data_batch["inputs"][0])
        runner.visualizer.add_image(f"regions_{mode}_{batch_idx}", picture, step=runner.iter)


def _classes(dataset: Dataset) -> Sequence[str] | None:
    return getattr(dataset, "metainfo", {}).get("classes")


@register_in("HOOKS")
class CheckClassesHook(Hook):
    """Compares the classes of the head, of the images to train on and of those to validate on before anything runs.

    ``custom_hooks = [dict(type='drconv_mm.CheckClassesHook')]``, for classifiers. Without it a head too small fails
    deep inside the loss, one too large trains in silence, and with other names in val/ than in train/ labels are wrong.

    Raises:
        ValueError: The head has another number of classes, or training and validation have other names.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks what is trained on, and what is validated on meanwhile."""
        trained = runner.train_dataloader.dataset
        self._check(runner, trained, "train_dataloader")
        if runner.val_loop is not None:
            validated = runner.val_dataloader.dataset
            self._check(runner, validated, "val_dataloader")
            names, others = _classes(trained), _classes(validated)
            if names is not None and others is not None and list(names) != list(others):
                one, other = next((a, b) for a, b in zip_longest(names, others) if a != b)
                raise ValueError(
                    f"class names differ: where train_dataloader has {one!r}, val_dataloader has {other!r}; a label is "
                    "a place in that list, so both need the same folders (or metainfo=dict(classes=[...]))"
                )

    def before_val(self, runner: Runner) -> None:
        """Checks what is validated on."""
        self._check(runner, runner.val_dataloader.dataset, "val_dataloader")

    def before_test(self, runner: Runner) -> None:
        """Checks what is tested on."""
        self._check(runner, runner.test_dataloader.dataset, "test_dataloader")

    def _check(self, runner: Runner, dataset: Dataset, loader: str) -> None:
        head = getattr(_bare(runner.model), "head", None)
        expected, classes = getattr(head, "num_classes", None), _classes(dataset)
        if expected is not None and classes is not None and expected != len(classes):
            raise ValueError(
                f"model.head.num_classes={expected}, but {loader} has {len(classes)} classes "
                f"({', '.join(classes[:3])}, ...); set model.head.num_classes={len(classes)}"
            )
