"""A training that was stopped and resumed ends with the same weights as one that never stopped."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..registration import register_in


@register_in("HOOKS")
class ExactResumeHook(Hook):
    """Makes the random numbers of each iteration a function of (seed, iteration, rank), whatever ran before it.

    ``default_hooks = dict(exact_resume=dict(type='drconv_mm.engine.exact_resume.ExactResumeHook'))``. mmengine's
    checkpoints hold weights, optimizer, schedules and the position in the data, but not the state of the random number
    generators: dropout, samplers and augmentation go on differently after a resume. With this hook they go on the same,
    in a training by epochs from the end of any epoch, in one by iterations from any iteration. That is of the loops of
    onedl-mmengine, with ``fast_forward_on_resume=False``, its default: mmengine 0.10.7's loop by iterations loads the
    batches that it skips, which takes numbers.

    Raises:
        ValueError: The training data are loaded by worker processes, whose generators no hook reaches; or a training by
            epochs goes on within one, whose data its loop begins anew.
    """

    priority = "LOWEST"  # after the checkpoint is written

    def before_train(self, runner: Runner) -> None:
        """Checks the loader and where it begins; its iterators no longer draw from the common generator."""
        loader = runner.train_dataloader
        if loader.num_workers:
            raise ValueError(
                f"ExactResumeHook: train_dataloader.num_workers={loader.num_workers}, expected 0 (and "
                "persistent_workers=False): augmentation in workers can't be resumed exactly. Change it, or leave the "
                "hook out"
            )
        if not isinstance(runner.train_loop, IterBasedTrainLoop) and runner.iter % len(loader):
            raise ValueError(
                f"ExactResumeHook: the checkpoint is of iteration {runner.iter}, expected a multiple of the epoch's "
                f"{len(loader)}: a training by epochs begins the data of an epoch anew. Resume from the end of an "
                "epoch (epoch_N.pth), or leave the hook out"
            )
        loader.generator = torch.Generator()
        _seed(runner, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the first iteration."""
        _seed(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Seeds the next iteration, whose data are loaded before any hook of its own."""
        _seed(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """The same, as a validation draws numbers and a resumed training may not repeat it."""
        _seed(runner, runner.iter)


def _seed(runner: Runner, iteration: int) -> None:
    words = np.random.SeedSequence([runner.seed, iteration, get_rank()]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
