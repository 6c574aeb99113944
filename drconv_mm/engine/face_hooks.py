"""Hooks for training face recognition: the margin's warm-up, and checkpoints of sharded class centres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..models.face.arcface_head import ArcFaceHead
from ..registration import register_in


def _heads(model: nn.Module) -> list[ArcFaceHead]:
    return [module for module in model.modules() if isinstance(module, ArcFaceHead)]


@register_in("HOOKS")
class MarginWarmupHook(Hook):
    """Raises ``ArcFaceHead.margin_factor`` linearly from 0 to 1: without margins a network finds its feet sooner.

    ``custom_hooks = [dict(type='drconv_mm.MarginWarmupHook', end=5)]``. The factor is 0 up to ``begin``, 1 from
    ``end`` on, and follows from the epoch or iteration alone, so a resumed run goes on with the right one. It is
    logged as ``margin_factor``.

    Args:
        begin: Epoch or iteration, counted from 0, up to which there is no margin.
        end: Epoch or iteration from which on the whole margin holds.
        by_epoch: Whether both count epochs, and the factor changes once an epoch, or iterations.

    Raises:
        ValueError: ``end`` is not after ``begin``.
    """

    def __init__(self, begin: int = 0, end: int = 5, by_epoch: bool = True):
        if not 0 <= begin < end:
            raise ValueError(f"end must be after begin, and begin at least 0, got begin={begin}, end={end}")
        self.begin = begin
        self.end = end
        self.by_epoch = by_epoch
        self._heads: list[ArcFaceHead] = []

    def before_train(self, runner: Runner) -> None:
        """Finds the head.

        Raises:
            ValueError: The model has none, or epochs are to be counted in a loop that knows iterations only.
        """
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f"MarginWarmupHook(by_epoch=True, end={self.end}): the training is counted in iterations; "
                "set by_epoch=False and give begin and end in iterations"
            )
        self._heads = _heads(runner.model)
        if not self._heads:
            raise ValueError("MarginWarmupHook: the model has no ArcFaceHead whose margins could be warmed up")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Sets the factor."""
        now = runner.epoch if self.by_epoch else runner.iter
        factor = min(max((now - self.begin) / (self.end - self.begin), 0.0), 1.0)
        for head in self._heads:
            head.margin_factor = factor
        runner.message_hub.update_scalar("train/margin_factor", factor)


@register_in("HOOKS")
class ShardedCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook for class centres that are spread over processes (``ArcFaceHead(sharded=True)``).

    ``default_hooks = dict(checkpoint=dict(type='drconv_mm.ShardedCheckpointHook', interval=1))``; the arguments are
    CheckpointHook's. The centres and their optimizer states of all processes are put together before process 0
    writes, so a checkpoint is that of a run in one process, and is resumed by any number of processes: each takes
    its rows. Without sharding it is CheckpointHook.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._gathered: dict[int, dict] = {}

    def before_train(self, runner: Runner) -> None:
        """Checks what would part the processes without a word.

        Raises:
            ValueError: The centres are sharded, and the optimizer wrapper clips gradients or is several in one, or
                there is an EMAHook.
        """
        super().before_train(runner)
        if not any(self._sharded(runner)):
            return
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError(
                "EMAHook averages a copy of the model, whose sharded class centres would not reach the checkpoint; "
                "leave it out, or set head.sharded=False"
            )
        if runner.optim_wrapper.clip_grad_kwargs:
            raise ValueError(
                "optim_wrapper.clip_grad would scale the gradients of each process by the norm of its own class "
                "centres, and the copies of the backbone would part; remove it, or set head.sharded=False"
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the optimizer states of all processes into the checkpoint; on process 0 only."""
        if "optimizer" in checkpoint and self._gathered:
            checkpoint["optimizer"]["state"].update(self._gathered)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Cuts this process's rows out of the optimizer states; the head does so with the centres."""
        if "optimizer" not in checkpoint or not isinstance(runner.optim_wrapper, OptimWrapper):
            return
        for position, head in self._sharded(runner):
            states = checkpoint["optimizer"]["state"]
            if position in states:
                whole = head.num_classes * head.sub_centers
                states[position] = {
                    name: head.own_rows(value).clone() if _is_of_rows(value, whole) else value
                    for name, value in states[position].items()
                }

    def _save_checkpoint(self, runner: Runner) -> None:
        with self._whole(runner):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            with self._whole(runner):
                super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _whole(self, runner: Runner) -> Iterator[None]:
        """All processes enter it, process 0 then has everything in main memory."""
        with ExitStack() as stack:
            for position, head in self._sharded(runner):
                stack.enter_context(head.whole_state())
                state = runner.optim_wrapper.optimizer.state.get(head.weight)
                if state:  # there is none before the first step, and for frozen centres
                    self._gathered[position] = {
                        name: head.gather_rows(value) if _is_of_rows(value, len(head.weight)) else value
                        for name, value in state.items()
                    }
            try:
                yield
            finally:
                self._gathered.clear()

    @staticmethod
    def _sharded(runner: Runner) -> Iterator[tuple[int, ArcFaceHead]]:
        """Each head with shards, after the position of its weight in the optimizer's state dict (-1: not in it)."""
        heads = [head for head in _heads(runner.model) if head.sharded]
        if heads and isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(
                "sharded class centres need one optimizer for the whole model, and optim_wrapper holds "
                f"{list(runner.optim_wrapper.keys())}; use one, or set head.sharded=False"
            )
        for head in heads:
            parameters = [id(p) for group in runner.optim_wrapper.param_groups for p in group["params"]]
            yield parameters.index(id(head.weight)) if id(head.weight) in parameters else -1, head


def _is_of_rows(value: object, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
