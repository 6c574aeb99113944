#!/usr/bin/env python
"""Train what a config describes, with the tool of the toolbox that it belongs to.

The config's `default_scope` names the toolbox: mmdet, mmseg or mmpretrain. That package's own train.py runs, unmodified
and with the same arguments, so all options are the toolbox's own: `tools/train.py CONFIG --help` lists them. Configs of
no toolbox say mmengine, such as those of face recognition; the train.py of whichever toolbox is installed runs them.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

TOOLBOXES = ("mmdet", "mmseg", "mmpretrain")
# The toolboxes' tools build a Runner from any config. Of a config that is nobody's, this one's come first.
NOBODY, ANYBODY = "mmengine", ("mmpretrain", "mmdet", "mmseg")


def find_config(arguments: list[str]) -> str | None:
    """The config among a command line's arguments.

    The toolboxes allow options before it, whose values only they know: so the first Python file comes before the first
    argument that is no option.
    """
    named = [argument for argument in arguments if not argument.startswith("-")]
    return next((argument for argument in named if argument.endswith(".py")), named[0] if named else None)


def mim_folder(toolbox: str) -> Path | None:
    """Where the installed toolbox keeps its configs and tools; None where it is not installed."""
    spec = find_spec(toolbox)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / ".mim"


def find_tool(config: str, tool: str) -> Path:
    """The tool of a config's toolbox.

    Args:
        config: Path of a config.
        tool: Name of the tool, ``'train.py'`` or ``'test.py'``.

    Raises:
        ValueError: There is no such config or none for a known toolbox, or the toolbox is not there.
    """
    known = ", ".join(TOOLBOXES)
    install = "install it (`make env` in a clone of drconv_mm does)"
    if not Path(config).is_file():
        raise ValueError(f"config {config!r} is no file; expected the path of a config, such as configs/detection/*.py")
    if find_spec("mmengine") is None:
        raise ValueError(f"config {config!r} cannot be read, as mmengine is not installed; {install}")
    from mmengine.config import Config

    try:
        scope = Config.fromfile(config, import_custom_modules=False).get("default_scope")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        # A base config that is missing, or of a package that is: mmengine says which.
        remedy = "install what is missing, or name the base config in `_base_` by its path"
        raise ValueError(f"config {config!r} cannot be read: {error}; {remedy}") from error
    if scope is None:
        remedy = f"add `default_scope = 'mmdet'`, or whichever of {known} it is for ('{NOBODY}' for none of them)"
        raise ValueError(f"config {config!r} has no default_scope, which names its toolbox; {remedy}")
    if scope not in (*TOOLBOXES, NOBODY):
        remedy = f"expected one of {known}, {NOBODY}; run that toolbox's own {tool}, or correct the config"
        raise ValueError(f"config {config!r} has default_scope={scope!r}, which is no known toolbox; {remedy}")
    toolboxes = ANYBODY if scope == NOBODY else (scope,)
    folders = [folder for folder in map(mim_folder, toolboxes) if folder is not None]
    if not folders:
        missing = f"none of {known} is installed" if scope == NOBODY else f"{scope} is not installed"
        raise ValueError(f"config {config!r} has default_scope={scope!r}, but {missing}; {install}")
    path = folders[0] / "tools" / tool
    if not path.is_file():
        remedy = "install it again, as a built package"
        raise ValueError(f"config {config!r} needs {folders[0].parent.name}'s {tool}, but {path} is missing; {remedy}")
    return path


def hint_for(message: str) -> str | None:
    """What to do about an error of the toolbox, where that is known."""
    if "unexpected keyword argument 'conv_cfg'" in message:
        return (
            "that part of the model takes no conv_cfg. Choose layers by name instead: model.type=drconv_mm.Retrofit "
            "with model.drconv=dict(model_type=..., include=[...]), see docs/enable.md"
        )
    if "conv_cfg" in message and "_delete_=True" in message:
        return (
            "the config says conv_cfg=None there, which no dict can be merged into. Add "
            "model.backbone.conv_cfg._delete_=True to --cfg-options (for a neck or head its own key)"
        )
    if "Cannot find None in registry" in message:
        return (
            "the config names a layer type that is not known (conv_cfg, norm_cfg, act_cfg, ...): mmcv's message has "
            "None in its place. This package's conv type is type='drconv_mm.DRConv'"
        )
    if "No such file or directory: '" in message:
        return (
            "a file that the config names is not there. If it is of the data set, put or link the data to that place, "
            "or set data_root of the dataloaders and ann_file of the evaluators to where they are"
        )
    if "need at least one array to concatenate" in message:
        return (
            "the data set is empty: no file was found where the config looks. Check data_root, data_prefix and the "
            "suffixes of its dataloaders against the folder, and that the annotations name images that are there"
        )
    return None


def forward(tool: str, arguments: str, doc: str) -> None:
    """Runs the toolbox's tool in this process, as if it had been called itself.

    Args:
        tool: Its name, which is also the name of ours.
        arguments: The usage's positional arguments.
        doc: The text of ``--help``.
    """
    config = find_config(sys.argv[1:])
    usage = f"usage: {tool} {arguments} [the toolbox's own options]"
    if config is None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(f"{usage}\n\n{doc.strip()}")
            return
        sys.exit(f"{usage}\n{tool}: error: a config is missing; expected the path of a .py file")
    try:
        path = find_tool(config, tool)
    except ValueError as error:
        sys.exit(f"{tool}: error: {error}")
    sys.path[0] = str(path.parent)
    sys.argv[0] = str(path)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Exception as error:
        # The toolbox's own traceback stays; where its reason is one that users of DRConv meet, the way out follows it.
        hint = hint_for(str(error))
        if hint is None:
            raise
        traceback.print_exc()
        sys.exit(f"{tool}: error: {hint}")


if __name__ == "__main__":
    forward("train.py", "CONFIG", __doc__)
