"""A training that was stopped and resumed ends with the same weights as one that never stopped."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registration import register_in


@register_in("HOOKS")
class ExactResumeHook(Hook):
    """Makes the random numbers of each iteration a function of (seed, iteration, rank), whatever ran before it.

    ``default_hooks = dict(exact_resume=dict(type='drconv_mm.engine.exact_resume.ExactResumeHook'))``. mmengine's
    checkpoints hold weights, optimizer, schedules and the position in the data, but not the state of the random number
    generators: dropout, samplers and augmentation go on differently after a resume. With this hook they go on the same,
    from any checkpoint, of an epoch or of an iteration.

    Raises:
        ValueError: The training data are loaded by worker processes, whose generators no hook reaches.
    """

    priority = "LOWEST"  # after the checkpoint is written

    def before_train(self, runner: Runner) -> None:
        """Checks the loader, and takes the draw that each of its iterators makes off the common generator."""
        loader = runner.train_dataloader
        if loader.num_workers:
            raise ValueError(
                f"ExactResumeHook: train_dataloader.num_workers={loader.num_workers}, expected 0 (and "
                "persistent_workers=False): augmentation in workers can't be resumed exactly. Change it, or leave the "
                "hook out"
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
