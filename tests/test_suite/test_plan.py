from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from drconv_mm import DRConv2d
from drconv_mm.engine.model import build_model
from drconv_mm.suite.config import load_suite
from drconv_mm.suite.errors import SuiteError
from drconv_mm.suite.matching import forget_widths, read_widths
from drconv_mm.suite.plan import check_claim, claim, generate_data, make_plan, missing_data, read_config, select

from .conftest import TINY, suite_file

ROOT = Path(__file__).parents[2]
SUITES = sorted((ROOT / "configs/suite").glob("*.py"))


def parsed(run) -> Config:
    """The run's config, with its options read as the toolboxes' command line reads them."""
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    config = Config.fromfile(run.task.config)
    config.merge_from_dict(parser.parse_args(["--cfg-options", *run.cfg_options]).cfg_options)
    return config


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_can_be_planned_without_its_data(path, tmp_path):
    suite = load_suite(path)
    runs = make_plan(suite, tmp_path, tmp_path / "data")
    assert len(runs) == suite.seeds * sum(len(suite.convs) - len(task.leave_out) for task in suite.tasks.values())
    assert len({run.folder for run in runs}) == len(runs)
    generated = {name for name, task in suite.tasks.items() if "generate" in task.data}
    messages = missing_data(suite, tmp_path / "data")
    assert len(messages) == len(suite.tasks) - len(generated)
    for run in runs:
        config = parsed(run)
        assert config.randomness.seed == run.seed
        length = config.train_cfg.get("max_epochs") or config.train_cfg.max_iters
        assert length == run.budget
        if suite.convs[run.conv] and "type" in suite.convs[run.conv]:
            expected = suite.convs[run.conv]
            assert {key: config.model.backbone.conv_cfg[key] for key in expected} == expected
        else:
            assert not config.model.backbone.get("conv_cfg")
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            assert str(loader.dataset.data_root).startswith(str(tmp_path / "data" / run.task.data["folder"]))


def test_the_only_difference_between_conv_types_is_the_key(suite, tmp_path):
    standard, dynamic = make_plan(suite, tmp_path, tmp_path)
    assert (
        dynamic.options.items() - standard.options.items() == {("model.backbone.conv_cfg.type", "drconv_mm.DRConv")}
        and not standard.options.keys() - dynamic.options.keys()
    )


def test_a_tasks_options_are_read_before_what_is_derived(suite, tmp_path):
    task = replace(suite.tasks["shapes"], options={"train_dataloader.batch_size": 3})
    runs = make_plan(replace(suite, tasks={"shapes": task}), tmp_path, tmp_path)
    assert {run.batch_size for run in runs} == {3}


def test_full_trains_the_networks_of_its_configs():
    """Not those that mini makes smaller."""
    suite = load_suite(ROOT / "configs/suite/full.py")
    for task in suite.tasks.values():
        assert task.options == {} and task.epochs is None and task.iterations is None
    left_out = {(name, conv) for name, task in suite.tasks.items() for conv in task.leave_out}
    assert left_out == {(name, "Conv2d-widened") for name in ("detection", "segmentation", "classification")}


def test_validations_are_the_suites_alone(suite, tmp_path):
    task, config = suite.tasks["shapes"], tmp_path / "late.py"
    late = "train_cfg = dict(val_begin=3, dynamic_intervals=[(3, 1)])"
    config.write_text(f"_base_ = '{task.config}'\n{late}\n")
    run = make_plan(replace(suite, tasks={"shapes": replace(task, config=config)}), tmp_path, tmp_path)[0]
    loop = parsed(run).train_cfg
    assert (loop.val_begin, loop.dynamic_intervals, loop.val_interval) == (1, None, 2)


@pytest.mark.parametrize(("length", "between_checkpoints", "between_logs"), [(4, 1, 4), (120, 12, 10)])
def test_checkpoints_and_logs_of_any_length(suite, tmp_path, length, between_checkpoints, between_logs):
    """About ten checkpoints, of which one may be half written; a short training logs its loss, too."""
    task, config = suite.tasks["shapes"], tmp_path / "iterations.py"
    loop = "train_cfg = dict(_delete_=True, by_epoch=False, max_iters=100)"
    config.write_text(f"_base_ = '{task.config}'\n{loop}\ndefault_hooks = dict(logger=dict(interval=10))\n")
    task = replace(task, config=config, epochs=None, iterations=length, options={})
    hooks = parsed(make_plan(replace(suite, tasks={"shapes": task}), tmp_path, tmp_path)[0]).default_hooks
    assert (hooks.checkpoint.interval, hooks.checkpoint.max_keep_ckpts) == (between_checkpoints, 2)
    assert hooks.logger.interval == between_logs
    text = config.read_text()
    for by_epoch, interval in ((False, min(5, between_checkpoints)), (True, between_checkpoints)):
        own = f"checkpoint=dict(type='CheckpointHook', interval=5, by_epoch={by_epoch})"
        config.write_text(f"{text}default_hooks.update({own})\n")
        hooks = parsed(make_plan(replace(suite, tasks={"shapes": task}), tmp_path, tmp_path)[0]).default_hooks
        assert hooks.checkpoint.interval == interval  # the config's own, where it is the shorter


def test_nested_settings_and_a_config_that_says_none(tmp_path):
    config = tmp_path / "none.py"
    config.write_text(
        f"_base_ = '{TINY.with_name('tiny_classifier.py')}'\nmodel = dict(backbone=dict(conv_cfg=None))\n"
    )
    conv = "dict(type='drconv_mm.DRConv', generator=dict(type='pooled', static=False), apply_to=None)"
    text = f"tasks['shapes']['config'] = {str(config)!r}\nconvs['X'] = {conv}"
    run = make_plan(load_suite(suite_file(tmp_path, text)), tmp_path, tmp_path)[-1]
    assert parsed(run).model.backbone.conv_cfg == dict(
        type="drconv_mm.DRConv", generator=dict(type="pooled", static=False), apply_to=None
    )


def test_schedules_keep_their_shape_and_warmups_their_length(suite, tmp_path):
    task = suite.tasks["shapes"]
    config = tmp_path / "schedule.py"
    config.write_text(
        f"""_base_ = '{task.config}'
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=12),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=6, end=12, T_max=6),
    dict(type='MultiStepLR', by_epoch=True, end=12, milestones=[8, 11]),
    dict(type='OneCycleLR', by_epoch=True, total_steps=12, eta_max=0.1),
    dict(type='ConstantLR', by_epoch=True, begin=0, end=3),
    dict(type='MultiStepLR', by_epoch=True, milestones=[6, 10]),
]
"""
    )
    tasks = {"shapes": replace(task, config=config, epochs=6)}
    run = make_plan(replace(suite, tasks=tasks), tmp_path, tmp_path)[0]
    warmup, cosine, steps, cycle, short, endless = parsed(run).param_scheduler
    assert (warmup.begin, warmup.end) == (0, 12) and short.end == 3
    assert (cosine.begin, cosine.end, cosine.T_max) == (4, 6, 2)  # what is behind the warmup of 3 shares the rest
    assert steps.milestones == [5, 5] and endless.milestones == [4, 5] and cycle.total_steps == 6  # all before the end
    shortest = make_plan(replace(suite, tasks={"shapes": replace(task, config=config, epochs=1)}), tmp_path, tmp_path)[
        0
    ]
    assert (parsed(shortest).param_scheduler[1].begin, parsed(shortest).param_scheduler[1].end) == (0, 1)
    own = make_plan(replace(suite, tasks={"shapes": replace(task, config=config, epochs=None)}), tmp_path, tmp_path)[0]
    assert own.budget == 12 and parsed(own).param_scheduler == Config.fromfile(config).param_scheduler


def test_steps_behind_a_warmup_and_steps_too_short_to_shrink(suite, tmp_path):
    task, config = suite.tasks["shapes"], tmp_path / "steps.py"
    config.write_text(
        f"""_base_ = '{task.config}'
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=2),
    dict(type='MultiStepLR', begin=2, milestones=[6, 8]),
    dict(type='StepLR', step_size=4, gamma=0.5),
    dict(type='StepLR', step_size=1, gamma=0.9),
    dict(type='ExponentialLR', gamma=0.9),
]
"""
    )
    short = replace(suite, tasks={"shapes": replace(task, config=config, epochs=7)})
    warmup, milestones, long, single, exponential = parsed(make_plan(short, tmp_path, tmp_path)[0]).param_scheduler
    assert (warmup.end, milestones.begin, milestones.milestones) == (2, 2, [3, 4])  # from its begin, of 5 that are left
    assert long.step_size == 2 and long.gamma == pytest.approx(0.5 ** (2 / (4 * 7 / 12)))
    # What is left of the rate at the end is what it was.
    assert single.step_size == 1 and single.gamma**7 == pytest.approx(0.9**12)
    assert exponential.gamma**7 == pytest.approx(0.9**12)


@pytest.mark.parametrize(
    "epochs, evaluations, due", [(5, 2, [3, 5]), (4, 2, [2, 4]), (5, 9, [1, 2, 3, 4, 5]), (7, 1, [7])]
)
def test_as_many_validations_as_asked_for_and_the_last_at_the_end(suite, tmp_path, epochs, evaluations, due):
    task = replace(suite.tasks["shapes"], epochs=epochs, evaluations=evaluations)
    run = make_plan(replace(suite, tasks={"shapes": task}), tmp_path, tmp_path)[0]
    assert sorted({*range(run.val_interval, epochs + 1, run.val_interval), epochs}) == due
    assert parsed(run).train_cfg.val_interval == run.val_interval


WARMUP = [
    dict(type="LinearLR", start_factor=0.1, end=2),
    dict(type="CosineAnnealingLR", begin=2, end=6, T_max=4),
]
# imagenet_bs1024_adamw_swin of mmpretrain, whose cosine has no end.
SWIN = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20),
]
# YOLOX of mmdet: the last epochs have a schedule of their own.
YOLOX = [
    dict(type="ConstantLR", end=5),
    dict(type="CosineAnnealingLR", begin=5, T_max=285, end=285),
    dict(type="ConstantLR", factor=1, begin=285, end=300),
]


@pytest.mark.parametrize(
    ("schedules", "own", "length", "expected"),
    [
        (WARMUP, 6, 8, [(0, 2), (2, 8, 6)]),
        (WARMUP, 6, 3, [(0, 2), (2, 3, 1)]),
        (WARMUP, 6, 2, [(0, 1), (1, 2, 1)]),
        (WARMUP, 6, 1, [(0, 1), (0, 1, 1)]),
        (SWIN, 300, 12, [(0, 1), (1, 12, 11)]),
        (SWIN, 300, 25, [(0, 20), (20, 25, 5)]),
        (YOLOX, 300, 12, [(0, 5), (5, 11, 11), (11, 12)]),
        (YOLOX, 300, 290, [(0, 5), (5, 276, 276), (276, 290)]),
        (YOLOX, 300, 600, [(0, 5), (5, 570, 570), (570, 600)]),
        (YOLOX, 300, 7, [(0, 5), (5, 6, 7), (6, 7)]),
        ([dict(type="PolyLR", begin=0, end=6)], 6, 2, [(0, 2)]),
        ([dict(type="CosineAnnealingLR", T_max=3)], 6, 12, [(0, 12, 6)]),
        ([dict(type="OneCycleLR", total_steps=6, eta_max=0.1)], 6, 4, [(0, 4, 4)]),
        # Of another unit than the training's: left as it is.
        ([dict(type="LinearLR", by_epoch=False, end=500)], 6, 2, [(0, 500)]),
    ],
)
def test_schedules_leave_no_gap_and_do_not_overlap(suite, tmp_path, schedules, own, length, expected):
    """As the Runner builds them: (begin, end) and, where a schedule has one, its period."""
    task, config = suite.tasks["shapes"], tmp_path / "schedule.py"
    text = f"train_cfg = dict(by_epoch=True, max_epochs={own}, val_interval=1)\nparam_scheduler = {schedules}"
    config.write_text(f"_base_ = '{task.config}'\n{text}\n")
    suite = replace(suite, tasks={"shapes": replace(task, config=config, epochs=length)})
    planned = parsed(make_plan(suite, tmp_path, tmp_path)[0])
    found = []
    for schedule in planned.param_scheduler:
        schedule.pop("convert_to_iter_based", None)
        optimizer = OptimWrapper(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        schedule.setdefault("end", planned.train_cfg.max_epochs)
        built = PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=optimizer))
        period = getattr(built, "T_max", getattr(built, "total_steps", None))
        found.append((built.begin, built.end) + ((period,) if period else ()))
    assert found == expected


def test_budget_in_the_wrong_unit(suite, tmp_path):
    wrong = replace(suite, tasks={"shapes": replace(suite.tasks["shapes"], epochs=None, iterations=10)})
    with pytest.raises(SuiteError, match="trains by epochs: give epochs in place of iterations"):
        make_plan(wrong, tmp_path, tmp_path)


def test_exact_resume_is_an_option(suite, tmp_path):
    exact = parsed(make_plan(suite, tmp_path, tmp_path)[0])
    assert exact.train_dataloader.num_workers == 0 and "exact_resume" in exact.default_hooks
    fast = parsed(make_plan(replace(suite, exact_resume=False), tmp_path, tmp_path)[0])
    assert fast.train_dataloader.num_workers == 1 and "exact_resume" not in fast.default_hooks


def test_paths_that_the_command_line_cannot_carry(suite, tmp_path):
    with pytest.raises(SuiteError, match="without spaces"):
        make_plan(suite, tmp_path, tmp_path / "my data")
    with pytest.raises(SuiteError, match=r"--work-dir='.*my work' .*without spaces"):
        make_plan(suite, tmp_path / "my work", tmp_path)
    nested = replace(suite.tasks["shapes"], options={"model.head": dict(topk=1)})
    with pytest.raises(SuiteError, match=r"model.head=\{'topk': 1\} .*by its dotted name"):
        make_plan(replace(suite, tasks={"shapes": nested}), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks['shapes']['metrics'] = 1", r"'metrics' is not known.*did you mean 'metric'"),
        ("del tasks['shapes']['key']", r"tasks\['shapes'\]: 'key' is missing"),
        ("tasks['shapes']['config'] = 'none.py'", r"config 'none.py' is no file; looked for"),
        ("tasks['shapes']['iterations'] = 5", "give iterations or epochs, not both"),
        ("tasks['shapes']['epochs'] = 0", "epochs must be an integer of at least 1, got 0"),
        ("tasks['a/b'] = tasks['shapes']", "'a/b' names a folder"),
        ("convs['X'] = 'DCN'", r"convs\['X'\] must be None, dict\(type=...\)"),
        ("convs['X'] = dict(widened_to='Conv2d')", "widened_to must name another"),
        ("tasks['shapes']['leave_out'] = ['X']", r"tasks\['shapes'\]: leave_out: 'X' is none of its convs"),
        ("tasks['shapes']['input_shape'] = 32", r"input_shape must be \(height, width\) in pixels, got 32"),
        ("tasks['shapes']['options'] = ['a=1']", r"options must be a dict, got \['a=1'\]"),
        ("tasks['shapes']['metric'] = 'AP'", "metric must be a dict, got 'AP'"),
        (
            "tasks['shapes']['metric']['unit'] = 'mm'",
            r"metric: unit='mm' is not known; choose one of \['', '%', 'count'",
        ),
        ("seeds = 0", "seeds must be at least 1, got 0"),
        ("baseline = 'X'", "baseline='X' is none of its convs"),
        ("del tasks['shapes']['data']['generate'], tasks['shapes']['data']['arguments']", "'files' is missing"),
        ("raise RuntimeError('no')", "can't be read: RuntimeError: no"),
    ],
)
def test_errors_of_the_file(tmp_path, text, message):
    with pytest.raises(SuiteError, match=message):
        load_suite(suite_file(tmp_path, text))


def test_no_file():
    with pytest.raises(SuiteError, match="'none.py' is no file"):
        load_suite("none.py")


def test_config_without_what_the_suite_needs(suite, tmp_path):
    config = tmp_path / "bare.py"
    config.write_text("default_scope = 'mmpretrain'\n")
    with pytest.raises(SuiteError, match=r"bare.py of task 'shapes' has no train_cfg"):
        read_config(replace(suite.tasks["shapes"], config=config))
    config.write_text(f"_base_ = '{suite.tasks['shapes'].config}'\nval_cfg = val_dataloader = val_evaluator = None\n")
    with pytest.raises(SuiteError, match=r"bare.py of task 'shapes' has no val_cfg"):
        read_config(replace(suite.tasks["shapes"], config=config))


def test_selection(suite):
    part = select(suite, ["DRConv"], ["shapes"], 5)
    assert list(part.convs) == ["DRConv"] and part.seeds == 5
    assert select(suite, ["drconv_mm.DRConv"], None, None).convs == {"DRConv": dict(type="drconv_mm.DRConv")}
    assert select(suite, None, None, None).convs == suite.convs


def test_any_conv_type_that_can_be_built(suite):
    found = select(suite, ["DCNv2", "torch.nn.Conv2d", "Conv2dAdaptivePadding"], None, None)
    assert found.convs["DCNv2"] == dict(type="DCNv2") and len(found.convs) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DCNv3", "did you mean 'DCNv2'"),
        ("DRconv", "did you mean 'DRConv'"),
        ("ReLU", r"nor a conv type that can be built \("),
        ("drconv_mm.NoSuchConv", "nor a conv type"),
        ("drconv_mm.DRConf", "built; did you mean 'drconv_mm.DRConv'"),
    ],
)
def test_unknown_conv_type(suite, name, message):
    with pytest.raises(SuiteError, match=message):
        select(suite, [name], None, None)


def test_a_config_with_another_conv_type_is_no_baseline(suite, tmp_path):
    config = tmp_path / "dynamic.py"
    key = "model = dict(backbone=dict(conv_cfg=dict(type='drconv_mm.DRConv')))"
    config.write_text(f"_base_ = '{TINY.with_name('tiny_classifier.py')}'\n{key}\n")
    suite = replace(suite, tasks={"shapes": replace(suite.tasks["shapes"], config=config)})
    message = r"sets model.backbone.conv_cfg=\{'type': 'drconv_mm.DRConv'\}, so conv 'Conv2d' would not be Conv2d"
    with pytest.raises(SuiteError, match=message):
        make_plan(suite, tmp_path, tmp_path)
    config.write_text(config.read_text().replace("drconv_mm.DRConv", "Conv2d"))
    assert parsed(make_plan(suite, tmp_path, tmp_path)[0]).model.backbone.conv_cfg == dict(type="Conv2d")
    (run,) = make_plan(replace(suite, convs={"X": dict(type="DCNv2")}), tmp_path, tmp_path)
    assert parsed(run).model.backbone.conv_cfg == dict(type="DCNv2")


def test_unknown_task_and_seeds(suite):
    with pytest.raises(SuiteError, match="did you mean 'shapes'"):
        select(suite, None, ["shape"], None)
    with pytest.raises(SuiteError, match="--seeds must be at least 1, got 0"):
        select(suite, None, None, 0)


def test_missing_data_says_what_and_where(tmp_path):
    suite = load_suite(ROOT / "configs/suite/mini.py")
    (tmp_path / "caltech20/train").mkdir(parents=True)
    messages = missing_data(suite, tmp_path)
    (message,) = (text for text in messages if "classification" in text)
    assert f"{tmp_path / 'caltech20'} with train, val; missing: val." in message and "https://" in message
    (tmp_path / "caltech20/val").mkdir()
    assert len(missing_data(suite, tmp_path)) == len(messages) - 1


def test_generated_data(suite, tmp_path):
    generate_data(suite, tmp_path)
    assert len(list((tmp_path / "tiny/train").glob("*/*.png"))) == 16
    generate_data(suite, tmp_path)
    (tmp_path / "other/tiny").mkdir(parents=True)
    (tmp_path / "other/tiny/photo.jpg").touch()
    with pytest.raises(SuiteError, match="task 'shapes': its data can't be generated"):
        generate_data(suite, tmp_path / "other")


def claims(work_dir: Path, suite, convs=None) -> list[str]:
    """Goes on with a suite, and tells which of its settings changed."""
    _, _, changed = check_claim(work_dir, suite, convs or suite.convs)
    claim(work_dir, suite, convs or suite.convs, make_plan(suite, work_dir, work_dir))
    return changed


def test_one_suite_in_a_work_dir(suite, tmp_path):
    claims(tmp_path, replace(suite, convs={"Conv2d": None}))
    claims(tmp_path, suite)  # a conv type is added
    claims(tmp_path, replace(suite, convs={"Conv2d": None}))
    document = json.loads((tmp_path / "suite.json").read_text())
    assert list(document["settings"]) == ["tasks.shapes", "convs.Conv2d", "exact_resume", "convs.DRConv"]
    assert document["planned"] == ["shapes/Conv2d/0", "shapes/DRConv/0"]
    with pytest.raises(SuiteError, match="holds suite 'tiny_suite', not 'other'"):
        claims(tmp_path, replace(suite, name="other"))


@pytest.mark.parametrize("what_is_there", ["result.json", "training/epoch_1.pth"])
def test_what_was_trained_with_is_not_changed(suite, tmp_path, what_is_there):
    """And what was not, may be: the first run of a task may have failed by its setting."""
    task = suite.tasks["shapes"]
    other_conv = replace(suite, convs={"Conv2d": None, "DRConv": dict(type="drconv_mm.DRConv", num_regions=4)})
    longer = replace(suite, tasks={"shapes": replace(task, epochs=8)})
    claims(tmp_path, suite)
    (tmp_path / "runs/shapes/DRConv/0").mkdir(parents=True)
    (tmp_path / "runs/shapes/DRConv/0/failed.json").touch()
    assert claims(tmp_path, other_conv) == ["convs.DRConv"] and claims(tmp_path, suite) == ["convs.DRConv"]
    assert claims(tmp_path, longer) == ["tasks.shapes"] and claims(tmp_path, suite) == ["tasks.shapes"]
    path = tmp_path / "runs/shapes/DRConv/0" / what_is_there
    path.parent.mkdir(exist_ok=True)
    path.touch()
    before = (tmp_path / "suite.json").read_bytes()
    inexact = replace(suite, exact_resume=False)
    for changed_suite, name in ((other_conv, "convs.DRConv"), (longer, "tasks.shapes"), (inexact, "exact_resume")):
        with pytest.raises(
            SuiteError, match=rf"has runs with other settings of {name} .*set them back, choose another"
        ):
            claims(tmp_path, changed_suite)
    assert (tmp_path / "suite.json").read_bytes() == before
    # What no training sees.
    renamed = replace(task, title="Shapes", data={**task.data, "source": "drawn"}, leave_out=["Conv2d"])
    claims(tmp_path, replace(suite, tasks={"shapes": renamed}))


def test_a_control_hangs_on_what_it_is_matched_to(suite, tmp_path):
    convs = {**suite.convs, "Wide": dict(widened_to="DRConv")}
    part = replace(suite, convs={"Wide": convs["Wide"]})
    other = dict(convs, DRConv=dict(type="drconv_mm.DRConv", num_regions=4))
    claims(tmp_path, part, convs)
    (tmp_path / "widths.json").write_text(json.dumps({"shapes/Wide": {}, "cells/Wide": {}, "shapes/Other": {}}))
    changed_settings = claims(tmp_path, part, other)
    assert changed_settings == ["convs.DRConv"]
    forget_widths(tmp_path, changed_settings, {**other, "Other": dict(widened_to="X")})
    assert list(read_widths(tmp_path)) == ["shapes/Other"]
    result = tmp_path / "runs/shapes/Wide/0/result.json"
    result.parent.mkdir(parents=True)
    result.touch()
    with pytest.raises(SuiteError, match=r"other settings of convs\.DRConv"):
        claims(tmp_path, part, convs)


def test_a_config_that_says_something_else_is_another_setting(suite, tmp_path):
    task, config = suite.tasks["shapes"], tmp_path / "configs" / suite.tasks["shapes"].config.name
    config.parent.mkdir()
    same = replace(suite, tasks={"shapes": replace(task, config=config)})
    config.write_text(f"_base_ = '{task.config}'\n")
    claims(tmp_path, suite)
    assert claims(tmp_path, same) == []  # it lies elsewhere
    result = tmp_path / "runs/shapes/DRConv/0/result.json"
    result.parent.mkdir(parents=True)
    result.touch()
    config.write_text(f"_base_ = '{task.config}'\noptim_wrapper = dict(optimizer=dict(lr=0.7))\n")
    with pytest.raises(SuiteError, match=r"other settings of tasks\.shapes"):
        claims(tmp_path, same)


def test_additions_of_the_docs_page(tmp_path):
    """The lines that docs/suite.md adds, in the suite that it names, whose controls need a width."""
    conv, task = (
        "\n".join(line[1:].strip() for line in block.splitlines() if line.startswith("+"))
        for block in re.findall(r"```diff\n(.*?)```", (ROOT / "docs/suite.md").read_text(), re.DOTALL)
    )
    mini = (ROOT / "configs/suite/mini.py").read_text()
    path = tmp_path / "mini.py"
    path.write_text(f"{mini}\nconvs.update({{{conv}}})\ntasks.update(dict({task}))\n")
    suite = load_suite(path)
    runs = {(run.task.name, run.conv) for run in make_plan(suite, tmp_path, tmp_path / "data")}
    assert len(conv.splitlines()) <= 5 and len(task.splitlines()) <= 5
    assert runs > {("cells", "Conv2d"), ("cells", "DRConv-pooled"), ("detection", "DRConv-m4")}
    assert "'cells'" in [message.split()[1] for message in missing_data(suite, tmp_path)]


def test_networks_of_full_can_be_built(tmp_path):
    """With the options of their runs: only the data are not there."""
    for run in make_plan(load_suite(ROOT / "configs/suite/full.py"), tmp_path, tmp_path):
        if run.seed == 0 and run.conv != "Conv2d-widened":
            layers = sum(isinstance(m, DRConv2d) for m in build_model(parsed(run)).modules())
            assert (layers > 0) == run.conv.startswith("DRConv"), run.name
