#!/usr/bin/env python
"""Prove that an environment can run the project: operators, toolboxes, and one mmdet model built."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from pathlib import Path

REMEDIES = {
    "mmcv._ext": "mmcv was built without its operators or for another torch: delete .venv and the cache "
    "(~/.cache/drconv_mm), then run tools/setup_env.sh",
    "libGL": "OpenCV needs system libraries: sudo apt-get install libgl1 libglib2.0-0",
    "libgthread": "OpenCV needs system libraries: sudo apt-get install libgl1 libglib2.0-0",
}


def check() -> str:
    """Imports and builds, and returns one line of versions."""
    import mmcv
    import mmcv._ext
    import mmdet
    import mmpretrain
    import mmseg
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import drconv_mm

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/retinanet/retinanet_r18_fpn_1x_coco.py")
    config.model.backbone.init_cfg = None  # nothing is downloaded
    config.model.backbone.conv_cfg = dict(type="drconv_mm.DRConv")
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    if not any(isinstance(module, drconv_mm.DRConv2d) for module in model.modules()):
        raise RuntimeError("the detector was built without DRConv layers")
    return (
        f"drconv_mm {drconv_mm.__version__}, torch {torch.__version__}, mmcv {mmcv.__version__}, "
        f"mmdet {mmdet.__version__}, mmseg {mmseg.__version__}, mmpretrain {mmpretrain.__version__}"
    )


def main() -> int:
    """Checks and says so."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    start, chatter = time.perf_counter(), io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            line = check()
    except Exception as error:  # whatever is wrong, one message says it
        text = f"{type(error).__name__}: {error}"
        remedy = next((hint for key, hint in REMEDIES.items() if key in text), "delete .venv, run tools/setup_env.sh")
        print(f"environment check failed: {text}\n  what to do: {remedy}", file=sys.stderr)
        return 1
    print(f"environment ready: {line} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
