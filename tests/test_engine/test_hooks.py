from __future__ import annotations

import logging
from types import SimpleNamespace as Namespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from drconv_mm import CheckClassesHook, DRConv2d, RegionStatsHook, RegionVisHook
from drconv_mm.layers import observe_regions

from ..processes import run_in_processes


class Model(BaseModel):
    def __init__(self, dynamic: bool = True):
        super().__init__(data_preprocessor=dict(type="ImgDataPreprocessor"))
        self.conv = DRConv2d(3, 4, 3) if dynamic else nn.Conv2d(3, 4, 3)
        self.head = nn.Identity()
        self.head.num_classes = 2

    def forward(self, inputs, data_samples=None, mode="tensor"):
        output = self.conv(inputs)
        return {"loss": output.square().mean()} if mode == "loss" else output


class Images(list):
    @property
    def metainfo(self):
        return dict(classes=("cat", "dog", "cow"))


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))


def make_runner(folder, model, hook, phase, images=4, batch_size=2, epochs=1, **others):
    """One that can train, validate or test; ``others`` are the Runner's own."""
    generator = torch.Generator().manual_seed(0)
    loader = dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=Images(dict(inputs=torch.randn(3, 8, 8, generator=generator)) for _ in range(images)),
    )
    if phase == "train":
        more = dict(
            train_cfg=others.pop("train_cfg", dict(by_epoch=True, max_epochs=epochs)),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-3)),
        )
    else:
        more = {f"{phase}_cfg": dict(), f"{phase}_evaluator": dict(type=Count)}
    return Runner(
        model=model,
        work_dir=str(folder),
        custom_hooks=hook if isinstance(hook, list) else [hook],
        randomness=dict(seed=0),
        default_scope="mmengine",
        experiment_name=folder.name,
        log_level="INFO",
        **{f"{phase}_dataloader": loader},
        **more,
        **others,
    )


def train(tmp_path, model, *, interval=1, shares=True, **arguments):
    hook = dict(type="drconv_mm.RegionStatsHook", interval=interval, shares=shares)
    runner = make_runner(tmp_path, model, hook, "train", **arguments)
    handler = Records()
    runner.logger.addHandler(handler)
    runner.train()
    return runner, handler.records


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def test_logs_shares_and_entropy(tmp_path):
    runner, records = train(tmp_path, Model())
    history = runner.message_hub.log_scalars
    assert 0 < history["train/region/conv/entropy"].current() <= 1
    assert sum(shares_of(runner)) == pytest.approx(1)
    assert any("conv: region entropy" in record.getMessage() for record in records)
    assert not any(record.levelno >= logging.WARNING and "One region" in record.getMessage() for record in records)


def shares_of(runner):
    return [runner.message_hub.get_scalar(f"train/region/conv/share_{j}").current() for j in range(8)]


def test_observes_at_its_interval_and_logs_no_shares_where_none_are_wanted(tmp_path):
    runner, _ = train(tmp_path, Model(), images=6, epochs=2, interval=2, shares=False)
    history = runner.message_hub.log_scalars
    assert len(history["train/region/conv/entropy"].data[0]) == 4  # of 2 x 3 iterations
    assert not [name for name in history if "share" in name]


def test_shares_are_of_the_images_of_all_processes(tmp_path):
    alone, _ = train(tmp_path / "alone", Model(), batch_size=4)
    run_in_processes(_has_the_shares_of_all, tmp_path, tmp_path, shares_of(alone))


def _has_the_shares_of_all(rank, folder, expected):
    runner, _ = train(folder / str(rank), Model())
    assert shares_of(runner) == pytest.approx(expected)


def test_warns_of_a_layer_that_uses_one_region(tmp_path):
    model = Model()
    nn.init.zeros_(model.conv.guide_weight)
    model.conv.guide_weight.requires_grad_(False)
    model.conv.init_weights = lambda: None  # the runner would make it random again
    _, records = train(tmp_path, model)
    (warning,) = [record for record in records if "One region got every pixel" in record.getMessage()]
    assert warning.levelno == logging.WARNING and "{'guide_weight': dict(lr_mult=0.5)}" in warning.getMessage()


@pytest.mark.parametrize(("num_regions", "first", "warnings"), [(8, None, 0), (8, 0, 2), (1, 0, 0)])
def test_an_epoch_is_judged_as_a_whole(tmp_path, num_regions, first, warnings):
    """Two epochs of two iterations, of which the second uses one region; one region alone is no collapse."""
    model, found = Model(), iter([first, 0] * 2)
    model.conv = DRConv2d(3, 4, 3, num_regions=num_regions)

    def collapse(name, regions, num_regions):
        region = next(found)
        return None if region is None else torch.full_like(regions, region)

    with observe_regions(model, collapse):
        _, records = train(tmp_path, model, epochs=2)
    assert sum("One region got" in record.getMessage() for record in records) == warnings


def test_by_iterations_layers_are_judged_before_the_end(tmp_path):
    """Once where a layer stays as it is, again where it recovered meanwhile."""
    model, regions = Model(), iter([0] * 20 + [None] * 10 + [0] * 10 + [0] * 5)

    def collapse(name, found, num_regions):
        region = next(regions)
        return None if region is None else torch.full_like(found, region)

    loop = dict(by_epoch=False, max_iters=45)
    with observe_regions(model, collapse):
        runner, records = train(tmp_path, model, train_cfg=loop, log_processor=dict(by_epoch=False))
    assert runner.iter == 45
    warned = [record for record in records if "One region got every pixel" in record.getMessage()]
    assert len(warned) == 2 and "in the last 10 observations" in warned[0].getMessage()
    told = [record for record in records if "region entropy" in record.getMessage()]
    assert len(told) == 3  # and of its recovery


class OneOfTwo(Model):
    """A model that runs another layer in each process."""

    def __init__(self, rank):
        super().__init__()
        self.others, self.rank = nn.ModuleList([DRConv2d(3, 4, 3), DRConv2d(3, 4, 3, num_regions=2)]), rank

    def forward(self, inputs, data_samples=None, mode="tensor"):
        unused = 0 * sum(parameter.sum() for parameter in self.parameters())  # else DDP complains
        return {"loss": self.others[self.rank](inputs).square().mean() + unused}


def test_processes_that_run_other_layers_do_not_wait_for_each_other(tmp_path):
    run_in_processes(_counts_both_layers, tmp_path, tmp_path)


def _counts_both_layers(rank, folder):
    runner, _ = train(folder / str(rank), OneOfTwo(rank))
    logged = {name.split("/")[2] for name in runner.message_hub.log_scalars if name.startswith("train/region/")}
    assert logged == {"others.0", "others.1"}


@pytest.mark.parametrize("kind", ["RegionStatsHook", "RegionVisHook"])
def test_two_hooks_and_a_batch_that_failed_leave_no_observer(tmp_path, kind):
    hook = dict(type=f"drconv_mm.{kind}", interval=2)
    train_or_test = "train" if kind == "RegionStatsHook" else "test"
    model = Model()
    runner = make_runner(tmp_path, model, [hook, dict(hook)], train_or_test)
    hooks = [hook for hook in runner.hooks if type(hook).__name__ == kind]
    assert len(hooks) == 2
    for hook in hooks:  # as where the batch between before and after fails
        getattr(hook, f"before_{train_or_test}_iter")(runner, 0)
    getattr(runner, train_or_test)()
    assert not model.conv._observers and not model.data_preprocessor._forward_hooks


def test_says_so_where_there_is_nothing_to_log(tmp_path):
    _, records = train(tmp_path, Model(dynamic=False))
    assert any("the model has no DRConv layer" in record.getMessage() for record in records)


def test_bad_intervals():
    with pytest.raises(ValueError, match="interval must be at least 1 iteration, got 0"):
        RegionStatsHook(interval=0)
    with pytest.raises(ValueError, match="interval must be at least 1 batch, got 0"):
        RegionVisHook(interval=0)


def test_draws_at_its_interval_and_not_more_than_it_may(tmp_path):
    hook = dict(type="drconv_mm.RegionVisHook", interval=2, max_images=3)
    runner = make_runner(tmp_path, Model(), hook, "test", images=10, batch_size=1)
    runner.test()
    pictures = sorted(path.stem for path in tmp_path.rglob("*.png"))
    assert pictures == ["regions_test_0_0", "regions_test_2_0", "regions_test_4_0"]


def test_draws_the_first_image_of_a_batch_at_the_iteration_that_it_is_of(tmp_path):
    model, hook = Model(), RegionVisHook(interval=1)
    images = [torch.zeros(3, 8, 8), 255 * torch.rand(3, 8, 8)]
    pictures = []
    runner = Namespace(
        model=model, iter=7, visualizer=Namespace(add_image=lambda *picture, step: pictures.append((*picture, step)))
    )
    hook._before_iter(runner, 0, mode="train")
    assert not model.conv._observers
    hook._before_iter(runner, 0, mode="val")
    model(torch.stack(images))
    regions, _ = hook._recorder.regions["conv"]
    hook._after_iter(runner, 0, dict(inputs=images), mode="val")
    ((name, picture, step),) = pictures
    assert (name, step) == ("regions_val_0", 7)
    assert picture[18:, :240].max() == 0 and (regions == regions[0, 0]).all(), "an image without edges has one region"


@pytest.mark.parametrize("phase", ["train", "val", "test"])
def test_another_number_of_classes_is_an_error(tmp_path, phase):
    runner = make_runner(tmp_path, Model(), dict(type="drconv_mm.CheckClassesHook"), phase)
    with pytest.raises(ValueError, match=rf"num_classes=2, but {phase}_dataloader has 3 classes \(cat, dog, cow, "):
        getattr(runner, phase)()
    runner.model.head.num_classes = 3
    getattr(runner, phase)()


def test_classes_are_checked_behind_a_wrapper():
    """As in a training on several GPUs."""
    loader = Namespace(dataset=Images())
    runner = Namespace(model=nn.DataParallel(Model()), val_loop=None, train_dataloader=loader)
    with pytest.raises(ValueError, match="num_classes=2, but train_dataloader has 3 classes"):
        CheckClassesHook().before_train(runner)


@pytest.mark.parametrize("names", [("cat", "cow", "dog"), ("cat", "dog", "cows"), ("cat", "dog")])
def test_other_class_names_in_validation_are_an_error_before_training(tmp_path, names):
    """Labels are places in the list of names."""

    class Others(Images):
        @property
        def metainfo(self):
            return dict(classes=names)

    model, hook = Model(), dict(type="drconv_mm.CheckClassesHook")
    model.head.num_classes = 3
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
    validated = Others([dict(inputs=torch.zeros(3, 8, 8))])
    others = dict(val_cfg=dict(), val_evaluator=dict(type=Count), val_dataloader=dict(loader, dataset=validated))
    runner = make_runner(tmp_path, model, hook, "train", **others)
    message = "val_dataloader has 2 classes" if len(names) == 2 else "class names differ: where train_dataloader has"
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0
