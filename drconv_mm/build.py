"""``python -m drconv_mm.build``: compiles the CPU kernels now, in place of at their first use.

The compiler is CXX, else g++, c++ or clang++. The result is kept in DRCONV_MM_CACHE (~/.cache/drconv_mm), for this
torch, this compiler and these sources. Without a compiler everything works, slower.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from .ops import extension


def main() -> int:
    """Compiles, loads and says where the library lies."""
    parser = argparse.ArgumentParser(prog="python -m drconv_mm.build", description=__doc__.split("``: ")[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.parse_args()
    logging.basicConfig(format="%(message)s")
    start = time.perf_counter()
    try:
        path = extension.build()
    except extension.BuildError as error:
        print(f"drconv_mm.build: {error}", file=sys.stderr)
        return 1
    if extension.why_not() is not None:  # it has been logged
        return 1
    import torch

    capability = torch.ops.drconv_mm_cpu.capability()
    print(f"CPU kernels ready ({capability}, {time.perf_counter() - start:.1f} s): {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
