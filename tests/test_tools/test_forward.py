"""tools/train.py and tools/test.py find the toolbox's own tool; the shell scripts start them in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLBOXES = ("mmdet", "mmseg", "mmpretrain")
SCRIPTS = ("dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh")


def run(*line: object, cwd: Path = ROOT, **variables: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": "", **{name: str(value) for name, value in variables.items()}}
    return subprocess.run([*map(str, line)], cwd=cwd, env=environment, capture_output=True, text=True)


def call(tool: str, *arguments: object, **keywords) -> subprocess.CompletedProcess:
    return run(sys.executable, ROOT / "tools" / tool, *arguments, **keywords)


def config(folder: Path, text: str) -> Path:
    path = folder / "config.py"
    path.write_text(text)
    return path


def fails(done: subprocess.CompletedProcess, *messages: str) -> None:
    assert done.returncode and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if ": error: " in line]
    for message in messages:
        assert message in line


@pytest.fixture
def recorders(tmp_path) -> Path:
    """Packages with the toolboxes' names, whose tools print how they were called."""
    for name in TOOLBOXES:
        tools = tmp_path / "packages" / name / ".mim/tools"
        tools.mkdir(parents=True)
        (tools.parents[1] / "__init__.py").write_text("raise RuntimeError('finding a tool must not import this')\n")
        for tool in ("train.py", "test.py"):
            (tools / tool).write_text(
                "import json, sys\n"
                "print(json.dumps([__name__, sys.argv, sys.path[0], sys.modules['__main__'].__file__]))\n"
                "sys.exit(7)\n"
            )
    return tmp_path / "packages"


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
@pytest.mark.parametrize("scope", TOOLBOXES)
def test_arguments_and_exit_status_pass_through(tmp_path, recorders, tool, scope):
    path = config(tmp_path, f"default_scope = {scope!r}\n")
    arguments = ["--work-dir", "a b", path, "weights.pth", "--launcher=none", "--cfg-options", "a.b=[1,2]", "c='x y'"]
    done = call(tool, *arguments, PYTHONPATH=recorders)
    assert done.returncode == 7, done.stderr
    name, argv, first, main = json.loads(done.stdout)
    expected = recorders / scope / ".mim/tools" / tool
    assert argv == [str(expected), *map(str, arguments)]
    assert (name, first, main) == ("__main__", str(expected.parent), str(expected))


@pytest.mark.parametrize("installed, expected", [(TOOLBOXES, "mmpretrain"), (("mmdet", "mmseg"), "mmdet")])
def test_a_config_of_no_toolbox_runs_by_one_that_is_there(tmp_path, recorders, installed, expected):
    path = config(tmp_path, "default_scope = 'mmengine'\n")
    missing = [name for name in TOOLBOXES if name not in installed]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({missing})); sys.argv = ['train.py', {str(path)!r}]; "
    code += f"runpy.run_path({str(ROOT / 'tools/train.py')!r}, run_name='__main__')"
    done = run(sys.executable, "-c", code, PYTHONPATH=recorders)
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)[1] == [str(recorders / expected / ".mim/tools/train.py"), str(path)]


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_help_says_whose_options_there_are(tool):
    done = call(tool, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in (*TOOLBOXES, "default_scope", "the toolbox's own"))


def test_help_of_a_config_is_the_toolbox_s():
    done = call("train.py", "configs/detection/retinanet_r18_fpn_bccd-160x120.py", "--help")
    assert done.returncode == 0 and "--auto-scale-lr" in done.stdout


def test_an_option_that_the_toolbox_does_not_know():
    done = call("train.py", "configs/detection/retinanet_r18_fpn_bccd-160x120.py", "--no-such-option")
    assert done.returncode == 2 and "unrecognized arguments: --no-such-option" in done.stderr


class TestErrors:
    @pytest.mark.parametrize("tool", ["train.py", "test.py"])
    def test_no_config(self, tool):
        fails(call(tool), f"{tool}: error: a config is missing")
        fails(call(tool, "--launcher=none"), "a config is missing; expected the path of a .py file")

    def test_no_such_config(self):
        fails(call("train.py", "nowhere/at_all.py"), "config 'nowhere/at_all.py' is no file", "configs/detection")

    def test_a_config_without_scope(self, tmp_path):
        path = config(tmp_path, "model = dict(type='RetinaNet')\n")
        fails(call("train.py", path), f"config {str(path)!r} has no default_scope", "add `default_scope = 'mmdet'`")

    def test_an_unknown_toolbox(self, tmp_path):
        path = config(tmp_path, "default_scope = 'mmyolo'\n")
        fails(
            call("test.py", path), "default_scope='mmyolo'", "expected one of mmdet, mmseg, mmpretrain", "own test.py"
        )

    def test_a_toolbox_that_is_not_installed(self, tmp_path):
        path = config(tmp_path, "default_scope = 'mmseg'\n")
        # None in sys.modules is how Python marks a module that cannot be imported.
        code = f"import sys, runpy; sys.modules['mmseg'] = None; sys.argv = ['train.py', {str(path)!r}]; "
        code += f"runpy.run_path({str(ROOT / 'tools/train.py')!r}, run_name='__main__')"
        done = run(sys.executable, "-c", code)
        fails(done, "default_scope='mmseg', but mmseg is not installed", "make env")

    def test_no_toolbox_at_all(self, tmp_path):
        path = config(tmp_path, "default_scope = 'mmengine'\n")
        code = f"import sys, runpy; sys.modules.update(dict.fromkeys({TOOLBOXES})); sys.argv = ['train.py', "
        code += f"{str(path)!r}]; runpy.run_path({str(ROOT / 'tools/train.py')!r}, run_name='__main__')"
        fails(run(sys.executable, "-c", code), "none of mmdet, mmseg, mmpretrain is installed", "make env")

    def test_a_toolbox_without_its_tools(self, tmp_path, recorders):
        (recorders / "mmdet/.mim/tools/train.py").unlink()
        path = config(tmp_path, "default_scope = 'mmdet'\n")
        done = call("train.py", path, PYTHONPATH=recorders)
        fails(done, f"{recorders / 'mmdet/.mim/tools/train.py'} is missing", "install it again")

    @pytest.mark.parametrize(
        "base, message",
        [("mmrotate::rotated_fcos/nothing.py", "mmrotate"), ("./no_such_base.py", "no_such_base.py")],
    )
    def test_a_base_config_that_is_missing(self, tmp_path, base, message):
        path = config(tmp_path, f"_base_ = {base!r}\ndefault_scope = 'mmdet'\n")
        fails(call("train.py", path), f"config {str(path)!r} cannot be read", message, "name the base config")


KEY = "model.backbone.conv_cfg.type=drconv_mm.DRConv"
BASE = "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"


@pytest.mark.integration
class TestHints:
    """The toolbox's error, and a line that says what to do about it."""

    def hinted(self, path: Path, options: list[str], *messages: str) -> None:
        done = call("train.py", path, "--work-dir", path.parent / "work", "--cfg-options", *options)
        assert done.returncode and "Traceback" in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("train.py: error: ")
        for message in messages:
            assert message in last

    def test_a_backbone_without_conv_cfg(self, tmp_path):
        text = "_base_ = 'mmdet::ssd/ssd300_coco.py'\nmodel = dict(backbone=dict(init_cfg=None))\n"
        self.hinted(config(tmp_path, text), [KEY], "takes no conv_cfg", "drconv_mm.Retrofit")

    @pytest.mark.parametrize("conv_type", ["drconv_mm.DRConvv", "drconv.DRConv"])
    def test_a_conv_type_with_a_typo(self, tmp_path, conv_type):
        path = config(tmp_path, BASE + "model = dict(backbone=dict(init_cfg=None))\n")
        self.hinted(path, [KEY.replace("drconv_mm.DRConv", conv_type)], "not known", "type='drconv_mm.DRConv'")

    def test_no_data(self, tmp_path):
        text = BASE + "model = dict(backbone=dict(init_cfg=None))\n"
        options = [KEY, f"train_dataloader.dataset.data_root={tmp_path}/nowhere"]
        self.hinted(config(tmp_path, text), options, "is not there", "data_root of the dataloaders")

    def test_conv_cfg_of_none(self, tmp_path):
        path = config(tmp_path, BASE + "model = dict(backbone=dict(conv_cfg=None))\n")
        self.hinted(path, [KEY], "conv_cfg._delete_=True")

    def test_an_empty_data_set(self, tmp_path):
        for folder in ("leftImg8bit", "gtFine"):
            for split in ("train", "val"):
                (tmp_path / "data" / folder / split).mkdir(parents=True)
        path = ROOT / "configs/segmentation/fast_scnn_camvid-240x180.py"
        text = f"_base_ = {str(path)!r}\n"
        options = [f"{loader}_dataloader.dataset.data_root={tmp_path / 'data'}" for loader in ("train", "val", "test")]
        self.hinted(config(tmp_path, text), options, "data_root", "data_prefix")


@pytest.fixture
def launcher(tmp_path) -> dict[str, str]:
    """PATH with launchers that print their arguments and PYTHONPATH, in place of starting anything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("torchrun", "srun"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "PYTHONPATH=$PYTHONPATH" "$@"\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


class TestShellScripts:
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_syntax_and_usage(self, script):
        path = ROOT / "tools" / script
        assert os.access(path, os.X_OK)
        assert run("bash", "-n", path).returncode == 0
        assert run("bash", path, "--help").returncode == 0
        done = run("bash", path, "one")
        assert done.returncode == 2 and f"usage: tools/{script} " in done.stderr

    @pytest.mark.parametrize("tool, checkpoint", [("train", []), ("test", ["w.pth"])])
    def test_dist(self, tmp_path, launcher, tool, checkpoint):
        script = ROOT / f"tools/dist_{tool}.sh"
        lines = run(script, "c.py", *checkpoint, 2, "--work-dir", "a b", cwd=tmp_path, **launcher).stdout.splitlines()
        own = [str(ROOT / f"tools/{tool}.py"), "c.py", *checkpoint, "--launcher", "pytorch", "--work-dir", "a b"]
        assert Path(lines[0].removeprefix("PYTHONPATH=")).resolve() == ROOT
        assert lines[-len(own) :] == own
        one_machine = ["nnodes=1", "node_rank=0", "master_addr=127.0.0.1", "master_port=29500", "nproc_per_node=2"]
        assert sorted(lines[1 : -len(own)]) == sorted(f"--{option}" for option in one_machine)

        cluster = {"NNODES": 3, "NODE_RANK": 1, "MASTER_ADDR": "10.0.0.1", "PORT": 1234, "PYTHONPATH": "/before"}
        lines = run(script, "c.py", *checkpoint, 4, cwd=tmp_path, **launcher, **cluster).stdout.splitlines()
        assert lines[0].endswith("/..:/before")
        options = ["nnodes=3", "node_rank=1", "master_addr=10.0.0.1", "master_port=1234", "nproc_per_node=4"]
        assert {f"--{option}" for option in options} <= set(lines)

    @pytest.mark.parametrize("tool, fourth", [("train", ["--work-dir", "w d"]), ("test", ["w d"])])
    def test_slurm(self, tmp_path, launcher, tool, fourth):
        arguments = ["part", "job", "c.py", "w d", "--cfg-options", "a=1"]
        script = ROOT / f"tools/slurm_{tool}.sh"
        lines = run(script, *arguments, cwd=tmp_path, **launcher).stdout.splitlines()
        own = ["python", "-u", str(ROOT / f"tools/{tool}.py"), "c.py", *fourth, "--launcher", "slurm"]
        own += arguments[4:]
        assert lines[-len(own) :] == own
        options = ["partition=part", "job-name=job", "gres=gpu:8", "ntasks=8", "ntasks-per-node=8", "cpus-per-task=5"]
        assert sorted(lines[1 : -len(own)]) == sorted(f"--{option}" for option in (*options, "kill-on-bad-exit=1"))

        variables = {"GPUS": 4, "CPUS_PER_TASK": 2, "SRUN_ARGS": "--quotatype=auto -x node1"}
        lines = run(script, *arguments, cwd=tmp_path, **launcher, **variables).stdout.splitlines()
        more = ["--gres=gpu:4", "--ntasks=4", "--ntasks-per-node=4", "--cpus-per-task=2", "--quotatype=auto", "-x"]
        assert {*more, "node1"} <= set(lines)
        lines = run(script, *arguments, cwd=tmp_path, **launcher, GPUS=16, GPUS_PER_NODE=4).stdout.splitlines()
        assert {"--ntasks=16", "--ntasks-per-node=4", "--gres=gpu:4"} <= set(lines)
