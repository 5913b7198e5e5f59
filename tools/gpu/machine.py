"""What GPU this machine has. Torch is asked in another process, so that this one holds no GPU."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu.steps import ROOT

HERE = "tools.gpu.machine"


class NoGpu(Exception):
    """There is none that torch can use; the text says why, in one line."""


@dataclass(frozen=True)
class Machine:
    """``missing``: each backend and why it cannot be used here, or None where it can."""

    name: str
    torch: str
    capability: str
    missing: dict[str, str | None]


def ask(host: bool) -> Machine:
    """The machine, or with ``host`` its stand-in for a GPU; NoGpu where there is none."""
    arguments = ("-m", "tools.gpu.on_host", "-m", HERE, "host") if host else ("-m", HERE)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NoGpu(f"torch cannot be asked: {lines[-1]}")
    about = json.loads(done.stdout.splitlines()[-1])
    if about["name"] is None:
        raise NoGpu("torch finds none" if about["cuda"] else "this torch was built without CUDA")
    return Machine(about["name"], about["torch"], about["capability"], about["missing"])


def main(arguments: Sequence[str]) -> None:
    import torch

    from se_kernels.core import dispatch

    host = "host" in arguments
    name, capability = ("host stand-in", "9.0") if host else (None, None)
    if not host and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
    missing = {}
    x = torch.empty(1, 1, 1, 1, device="cpu" if host or name is None else "cuda")
    for backend, module in dispatch.BACKENDS.items():
        reason = module.why_not() or module.why_not_for(x)
        missing[backend] = reason.splitlines()[0] if reason else None
    about = dict(name=name, capability=capability, torch=torch.__version__, missing=missing)
    print(json.dumps(about | dict(cuda=torch.version.cuda)))


if __name__ == "__main__":
    main(sys.argv[1:])
