#!/usr/bin/env python
"""Evaluate a checkpoint of what a config describes, with the tool of the toolbox that it belongs to.

The config's `default_scope` names the toolbox: mmdet, mmseg or mmpretrain. That package's own test.py runs, unmodified
and with the same arguments, so all options are the toolbox's own: `tools/test.py CONFIG --help` lists them. Configs of
no toolbox say mmengine, such as those of face recognition; the test.py of whichever toolbox is installed runs them.
"""

from train import forward

if __name__ == "__main__":
    forward("test.py", "CONFIG CHECKPOINT", __doc__)
