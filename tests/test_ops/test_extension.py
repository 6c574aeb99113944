"""The compiled kernels: how they are built and found, every capability, and threads that call them at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from drconv_mm import region_conv2d
from drconv_mm.ops import extension

from .test_region_conv import assert_like_reference, forward_backward, make, problems

CAPABILITIES = ["avx512", "avx2", "portable"]
VARIABLE = "DRCONV_MM_CPU_CAPABILITY"
CALL = (
    "import torch, drconv_mm; shapes = (1, 2, 3, 3), (1, 2, 4, 2, 1, 1), (1, 2, 3, 3); "
    "print(drconv_mm.region_conv2d(*map(torch.ones, shapes)).sum().item())"
)


pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(params=CAPABILITIES)
def capability(request, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    try:
        torch.ops.drconv_mm_cpu.capability()
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


def side_by_side(filters):
    """With a tap's outputs as neighbours, as generators lay filters out."""
    return filters.permute(0, 1, 4, 5, 3, 2).contiguous().permute(0, 1, 5, 4, 2, 3)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_any_geometry_equals_the_oracle_on_each_capability(capability, problem):
    assert torch.ops.drconv_mm_cpu.capability() == capability
    assert_like_reference("cpu", *problem)


# Panels of one to four vectors with full and partial last ones, tiles with every number of rows left over.
@pytest.mark.parametrize("c, o", [(5, 3), (16, 24), (40, 48), (64, 70), (130, 33)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("layout", ["as conv2d's", "outputs side by side"])
def test_wide_layers_equal_the_oracle(capability, c, o, dtype, tolerance, layout):
    *tensors, arguments = make(n=3, c=c, o=o, m=4, kernel=(2, 1), size=(6, 7), dtype=dtype, padding=1)
    if layout == "outputs side by side":
        tensors[1] = side_by_side(tensors[1])
    assert_like_reference("cpu", tensors, arguments, tolerance, tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "case",
    [
        dict(c=12, o=12),
        dict(c=48, o=48, groups=48),  # with fewer there is work for one thread alone
        dict(c=48, o=48, groups=48, own=False),
        dict(c=64, o=64, own=False),
        dict(c=64, o=64, kernel=(1, 1)),
    ],
    ids=str,
)
def test_any_number_of_threads_gives_the_same(threads, case):
    *tensors, arguments = make(n=2, m=3, size=(31, 30), padding=1, **case)
    before = torch.get_num_threads()
    tensors[2] = tensors[2].contiguous(memory_format=torch.channels_last)
    expected = forward_backward(tensors, "dense" if "groups" in case else "sorted", arguments)
    try:
        torch.set_num_threads(threads)
        found = forward_backward(tensors, "cpu", arguments)
    finally:
        torch.set_num_threads(before)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("groups", [1, 2])
def test_many_positions_of_a_bank_with_outputs_side_by_side(capability, groups):
    """More than the kernels take at a time."""
    *tensors, arguments = make(n=1, c=6, o=24, m=2, kernel=(2, 1), size=(20, 20), padding=1, groups=groups)
    tensors[1] = side_by_side(tensors[1])
    assert_like_reference("cpu", tensors, arguments)


def test_more_banks_than_the_caches_hold(capability):
    *tensors, arguments = make(n=1, c=256, o=256, m=3, size=(5, 4), padding=1)
    found, expected = (forward_backward(tensors, backend, arguments) for backend in ("cpu", "dense"))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_eight_threads_at_once():
    cases = [make(n=2, c=8 + i, o=12, m=2 + i % 3, size=(9 + i, 11), padding=1, seed=i) for i in range(16)]
    expected = [forward_backward(tensors, "dense", arguments) for *tensors, arguments in cases]

    def work(case):
        *tensors, arguments = case
        return [forward_backward(tensors, "cpu", arguments) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        for results, wanted in zip(pool.map(work, cases), expected, strict=True):
            for result in results:
                for got, want in zip(result, wanted, strict=True):
                    torch.testing.assert_close(got, want)


def test_an_unknown_capability_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "sse9")
    *tensors, arguments = make()
    with pytest.raises(ValueError, match=f"{VARIABLE}='sse9' is not known; choose one of avx512, avx2, portable"):
        region_conv2d(*tensors, backend="cpu", **arguments)


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("module", ["drconv_mm.build", "drconv_mm.info"])
def test_a_capability_that_is_not_known_is_said(module):
    done = python("-m", module, **{VARIABLE: "sse9"})
    assert "Traceback" not in done.stderr
    assert f"{VARIABLE}='sse9' is not known" in done.stdout + done.stderr and "can't be loaded" not in done.stderr


def test_what_the_kernels_depend_on_is_in_their_path(monkeypatch):
    paths = {extension.library_path()}
    monkeypatch.setenv("DRCONV_MM_CXXFLAGS", "-g")
    paths.add(extension.library_path())
    monkeypatch.setattr(extension, "compiler", lambda: (["g++"], "another 1.0"))
    paths.add(extension.library_path())
    monkeypatch.setattr(extension, "compiler", lambda: (["g++", "-O1"], "another 1.0"))
    paths.add(extension.library_path())
    monkeypatch.setattr(torch._C, "_GLIBCXX_USE_CXX11_ABI", not torch._C._GLIBCXX_USE_CXX11_ABI)
    paths.add(extension.library_path())
    assert len(paths) == 5


def test_two_processes_build_once_and_both_use_it(tmp_path, monkeypatch):
    environment = {**os.environ, "DRCONV_MM_CACHE": str(tmp_path), "CXXFLAGS": ""}
    monkeypatch.setenv("DRCONV_MM_CACHE", str(tmp_path))
    killed = extension.library_path().parent / "part.killed"  # a build that did not come to its end
    killed.mkdir(parents=True)
    jobs = [
        subprocess.Popen([sys.executable, "-m", "drconv_mm.build"], env=environment, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    outputs = [job.communicate(timeout=300) for job in jobs]
    assert all(job.returncode == 0 for job in jobs), outputs
    assert all("CPU kernels ready" in out for out, _ in outputs)
    assert sum("compiling the CPU kernels" in err for _, err in outputs) == 1
    (folder,) = (tmp_path / "kernels").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [extension.LIBRARY, "lock"]
    # A library that can't be loaded: one message, and everything works on the next backend.
    (folder / extension.LIBRARY).write_bytes(b"not a library")
    done = python("-c", CALL, DRCONV_MM_CACHE=str(tmp_path))
    assert done.stdout.strip() == "72.0"
    assert "can't be loaded" in done.stderr and "remove it and run python -m drconv_mm.build" in done.stderr


def test_without_a_compiler_everything_works_and_one_message_says_why(tmp_path):
    environment = dict(DRCONV_MM_CACHE=str(tmp_path), CXX="no-such-compiler")
    done = python("-c", f"{CALL}; {CALL}", **environment)
    assert done.stdout.split() == ["72.0", "72.0"]
    assert done.stderr.count("no C++ compiler (no-such-compiler)") == 1 and "slower backends" in done.stderr
    done = python("-m", "drconv_mm.build", **environment)
    assert done.returncode == 1 and "apt-get install g++" in done.stderr and "Traceback" not in done.stderr


def test_a_cache_folder_needs_a_home_only_where_none_is_named(monkeypatch, tmp_path):
    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(extension.Path, "home", classmethod(no_home))
    monkeypatch.delenv("DRCONV_MM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert extension.cache_folder() == tmp_path / "drconv_mm"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    with pytest.raises(extension.BuildError, match=r"no folder to keep the kernels in .*home.*set DRCONV_MM_CACHE"):
        extension.build()


def test_cxx_is_a_command_with_arguments(monkeypatch, tmp_path):
    path, version = extension.compiler()
    monkeypatch.setenv("CXX", f"/usr/bin/env '{path[0]}'")
    assert extension.compiler() == (["/usr/bin/env", path[0]], version)
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(extension.BuildError, match="CXX=.* is no command"):
        extension.compiler()
    broken = tmp_path / "cxx"
    broken.write_text("neither a script nor a program")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(extension.BuildError, match="cxx can't be run .*set CXX to a C[+][+] compiler that works"):
        extension.build()


def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written(tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo old 1.0 && exit\necho "error: no C++17" >&2; exit 1\n')
    compiler.chmod(0o755)
    done = python("-m", "drconv_mm.build", DRCONV_MM_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
    assert done.returncode == 1 and "the compiler failed: error: no C++17" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.so")) and not list((tmp_path / "cache").rglob("part.*"))
    (tmp_path / "file").touch()
    done = python("-m", "drconv_mm.build", DRCONV_MM_CACHE=str(tmp_path / "file"))
    assert done.returncode == 1 and "can't be written" in done.stderr and "DRCONV_MM_CACHE" in done.stderr
