"""Compiles the C++ kernels on the machine that runs them, against the torch that is there, and loads them."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "drconv_mm_cpu.so"
_logger = logging.getLogger("drconv_mm")

# A capability's vector width in bytes, vectors of a tile (by the number of registers) and flags. The processor is asked
# when the kernels run: nothing depends on the machine that compiled them.
_X86 = {
    "avx512": (64, 4, ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]),
    "avx2": (32, 3, ["-mavx2", "-mfma"]),
}
_PORTABLE = {"portable": (16, 3, [])}
_COMMON = ["-O3", "-fPIC", "-g0"]


class BuildError(RuntimeError):
    """The kernels can't be compiled or loaded here; the message says why and what to do."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``DRCONV_MM_CACHE``, else ``~/.cache/drconv_mm``.

    Raises:
        BuildError: There is no home folder either.
    """
    if os.environ.get("DRCONV_MM_CACHE"):
        return Path(os.environ["DRCONV_MM_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drconv_mm"
    except RuntimeError as error:
        raise BuildError(f"no folder to keep the kernels in ({error}): set DRCONV_MM_CACHE") from error


def compiler() -> tuple[list[str], str]:
    """The C++ compiler's command (``CXX``, else g++, c++ or clang++) and the first line of its version.

    Raises:
        BuildError: There is none, or it can't be run.
    """
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']!r} is no command ({error}): set CXX to a C++ compiler") from error
    names = asked[:1] or ["g++", "c++", "clang++"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise BuildError(f"no C++ compiler ({', '.join(names)}): install one (apt-get install g++), or set CXX")
    command = [path, *asked[1:]]  # `ccache g++`, or options
    done = _call([*command, "--version"])
    if done.returncode or not done.stdout:
        line = shlex.join(command)
        raise BuildError(f"{line} --version failed ({done.stderr.strip()}): set CXX to a C++ compiler that works")
    return command, done.stdout.splitlines()[0]


def extra_flags() -> list[str]:
    """``DRCONV_MM_CXXFLAGS``: more flags for compiler and linker, sanitizers for instance."""
    return os.environ.get("DRCONV_MM_CXXFLAGS", "").split()


def library_path() -> Path:
    """Where the kernels for this torch, this compiler, these flags and these sources lie, or would.

    Raises:
        BuildError: There is no compiler, or no folder for them.
    """
    digest = hashlib.sha256()
    command, version = compiler()
    for part in (torch.__version__, _abi(), version, *command[1:], platform.machine(), *extra_flags()):
        digest.update(part.encode() + b"\0")
    for source in (*sorted(SOURCES.iterdir()), Path(__file__)):
        digest.update(source.read_bytes())
    release = torch.__version__.replace("+", "-")
    return cache_folder() / "kernels" / f"torch{release}-{digest.hexdigest()[:16]}" / LIBRARY


def _abi() -> str:
    """Of this torch's C++ library."""
    return f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"


def build() -> Path:
    """Compiles the kernels, unless they are there, and returns the library.

    Safe against other processes that build at the same time: one builds, the others wait for it and use the result.

    Raises:
        BuildError: There is no compiler, it failed, or the cache can't be written.
    """
    if os.name != "posix":
        raise BuildError("the kernels are compiled on Linux and macOS alone")
    try:
        path = library_path()
    except OSError as error:
        raise BuildError(f"the kernels' sources can't be read ({error}): install the package anew") from error
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / "lock"):
            if not path.exists():
                for left in path.parent.glob("part.*"):  # by a build that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=path.parent, prefix="part.") as part:
                    _compile(Path(part))
                    (Path(part) / LIBRARY).replace(path)  # same disk: whole or not there
    except OSError as error:
        raise BuildError(f"{path.parent} can't be written ({error}): free space or set DRCONV_MM_CACHE") from error
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on every system

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it should this process be killed
        yield


def _compile(folder: Path) -> None:
    cxx, version = compiler()
    _logger.warning(
        "drconv_mm: compiling the CPU kernels, once for this torch and compiler (half a minute, %s)", version
    )
    root = Path(torch.__file__).parent
    standard = "-std=c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14) else "-std=c++17"
    common = [*cxx, standard, *_COMMON, *extra_flags()]
    objects, commands = [], []
    capabilities = {**(_X86 if platform.machine() in ("x86_64", "AMD64") else {}), **_PORTABLE}
    for name, (width, vectors, flags) in capabilities.items():
        objects.append(folder / f"{name}.o")
        defines = [f"-DCAPABILITY={name}", f"-DVECTOR_BYTES={width}", f"-DMAX_VECTORS={vectors}"]
        commands.append([*common, *flags, *defines, "-c", SOURCES / "kernels.cpp", "-o", objects[-1]])
    objects.append(folder / "region_conv.o")
    includes = [f"-isystem{root / 'include'}", f"-isystem{root / 'include/torch/csrc/api/include'}"]
    commands.insert(0, [*common, "-fopenmp", _abi(), *includes, "-c", SOURCES / "region_conv.cpp", "-o", objects[-1]])
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    library = root / "lib"
    link = ["-shared", f"-L{library}", "-ltorch_cpu", "-lc10", "-fopenmp", f"-Wl,-rpath,{library}"]
    _run([*common, *objects, *link, "-o", folder / LIBRARY])


def _call(command: list[str | Path]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run([str(part) for part in command], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} can't be run ({error}): set CXX to a C++ compiler that works") from error


def _run(command: list[str | Path]) -> None:
    done = _call(command)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        line = " ".join(map(str, command))
        raise BuildError(f"the compiler failed: {' / '.join(errors[:3])}\n  command: {line}\n  try another CXX")


@functools.cache
def why_not() -> str | None:
    """Compiles and loads the kernels at the first call; why they can't be used, or None.

    The reason is logged, once.
    """
    try:
        path = build()
        try:
            torch.ops.load_library(str(path))
            capability = torch.ops.drconv_mm_cpu.capability
        except (OSError, RuntimeError, AttributeError) as error:
            raise BuildError(
                f"{path} can't be loaded ({error}): remove it and run python -m drconv_mm.build"
            ) from error
        try:
            capability()
        except (RuntimeError, ValueError) as error:  # one that was asked for, which this processor lacks
            raise BuildError(str(error).splitlines()[0]) from error
    except BuildError as error:
        _logger.warning("drconv_mm: the CPU kernels can't be used, slower backends take their place: %s", error)
        return str(error)
    return None
