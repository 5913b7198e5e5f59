"""`python -m tools.gpu.on_host -m MODULE ...`, with backend "cuda" on the host's stand-in."""

import os
import runpy
import sys

from tools.gpu.steps import ROOT

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(1, str(ROOT / "tests"))
    from host_gpu import lend_to_the_cuda_backend

    lend_to_the_cuda_backend()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
