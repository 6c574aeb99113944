"""A hook that ends the whole suite at a chosen moment, as a power cut would."""

from __future__ import annotations

import os
import signal

from mmengine.hooks import Hook


class KillHook(Hook):
    """Kills its process group where ``KILL_AT`` says: ``train:5``, ``save:6``, ``val:8``, ``test:0``."""

    priority = "HIGHEST"

    def _reached(self, moment: str) -> None:
        if os.environ.get("KILL_AT") == moment:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._reached(f"train:{runner.iter + 1}")

    def before_save_checkpoint(self, runner, checkpoint):
        self._reached(f"save:{runner.iter}")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._reached(f"val:{runner.iter}")

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._reached("test:0")
