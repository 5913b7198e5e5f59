"""The CUDA library as nvcc builds it, on a machine without a GPU: `make cuda`.

It loads and says what it lacks; its machine code spills nothing, and moves 16 bytes at a time where
it should. Without nvcc: which GPUs setup.py builds for, and that the checks find what is amiss.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_listing
import pytest
import setuptools
import torch
from cuda_listing import KERNELS, Kernel, amiss, least, read_code, read_usage, told

from se_kernels.backends.cuda import library as kernels

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("SE_KERNELS_CUDA_BUILD")  # what `make cuda` has built
OPERATIONS = ("forward", "backward", "squeeze", "scale", "scale_backward", "squeeze_backward")
NORM_OPERATIONS = tuple(f"norm_{phase}" for phase in cuda_listing.NORM_PHASES)

needs_library = pytest.mark.skipif(FOLDER is None, reason="only for `make cuda`")


# --- which GPUs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_py():
    """The names of setup.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: None)
        return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))


NVCC_13_0 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]
NVCC_12_4 = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90]


@pytest.mark.parametrize(
    "wanted, known, code, ptx",
    [
        ("", NVCC_13_0, [75, 80, 90, 100, 120], [80]),
        ("", NVCC_12_4, [75, 80, 90], [80]),
        ("9.0a", NVCC_13_0, [90], []),
        ("7.5,8.0+PTX; 9.0", NVCC_13_0, [75, 80, 90], [80]),
        ("8.9;8.6+PTX;8.6", NVCC_13_0, [89, 86], [80]),
        ("12.1+PTX", NVCC_13_0, [121], [80]),
        ("7.5+PTX", NVCC_13_0, [75], [75]),
    ],
)
def test_architectures(setup_py, wanted, known, code, ptx):
    assert setup_py._architectures(wanted, known) == (code, ptx)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ("90", "from 7.5 on, such as 8.0;9.0[+]PTX, got '90'"),
        ("8.0;7.0", "from 7.5 on, .*got '7.0'"),
        ("8.0,native", "got 'native'"),
        ("9.0b", "got '9.0b'"),
        ("8.0;10.0", "some of 5.0, .*, 9.0, which this nvcc compiles for, got '10.0'"),
    ],
)
def test_bad_architectures_are_one_error(setup_py, wanted, message):
    with pytest.raises(SystemExit, match=f"^SE_KERNELS_CUDA_ARCHS: expected .*{message}"):
        setup_py._architectures(wanted, NVCC_12_4)


def test_the_front_end_passes_twice_at_most(setup_py):
    flags = setup_py._gencode(*setup_py._architectures("", NVCC_13_0))
    assert flags == [
        "-gencode=arch=compute_80,code=[sm_80,sm_90,sm_100,sm_120,compute_80]",
        "-gencode=arch=compute_75,code=[sm_75]",
    ]


@pytest.mark.parametrize(
    "capability, served",
    [
        ((7, 5), True),
        ((7, 2), False),
        ((8, 6), True),  # by the code for 8.0
        ((9, 0), True),
        ((12, 1), True),
        ((13, 0), True),  # by the PTX of 8.0
    ],
)
@pytest.mark.parametrize("ptx", [["80"], []], ids=["with PTX", "without"])
def test_gpus_that_are_served(monkeypatch, capability, served, ptx):
    major, minor = capability
    built = {"code": ["75", "80", "90", "120"], "ptx": ptx}
    monkeypatch.setattr(kernels, "archs", built)
    gpu = SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    reason = kernels._why_not_on(0)
    if served and (ptx or major < 13):
        assert reason is None
    else:
        assert reason.startswith("built for compute capability 7.5, 8.0, 9.0, 12.0")
        assert reason.endswith(f"got a GPU of {major}.{minor}")


# --- the checks find what is amiss --------------------------------------------------------------

CODES = {"f": "float32", "8bfloat16": "bfloat16", "7float16": "float16", "12WideFallback": "any"}


def mangled(kernel: Kernel) -> str:
    number = next(code for code, number in CODES.items() if number == kernel.number)
    tail = f"Lb{int(kernel.tail)}E"
    if kernel.direction == "norm":
        backward = kernel.phase.endswith("backward")
        tail = f"LNS0_5TermsE{2 if kernel.tail else 3}E" if backward else ""
    return (
        f"_ZN10se_kernels4cuda12_GLOBAL__N__1_{kernel.direction}_{kernel.phase}I"
        + (number if number == "f" else f"NS0_{number}E")
        + f"LNS_6LayoutE{int(kernel.layout == 'nhwc')}E"
        + f"{tail}EvNS0_1PE"
    )


def listing(capability: int) -> str:
    """Of kernels that hold what they should and no more."""
    lines = []
    for kernel in sorted(KERNELS, key=str):
        lines += [
            "",
            f"\t\tFunction : {mangled(kernel)}",
            "        /*0000*/  MOV R1, c[0x0][0x28] ;",
        ]
        for pattern, number in least(kernel, capability).items():
            name = pattern.replace(r"\S*\.", ".E.NA.")
            lines += [f"        /*{8 * i:04x}*/  @!P0 {name} R4, [R2] ;" for i in range(number)]
    return "\n".join(lines)


@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_what_kernels_should_hold_passes(capability):
    assert amiss(read_code(listing(capability)), capability) == []


@pytest.mark.parametrize(
    "capability, sound, doctored, finding",
    [
        (80, "MOV R1, c[0x0][0x28]", "LDL R1, [R1]", "accesses to local memory"),
        (80, "MOV R1, c[0x0][0x28]", "@P0 STL.64 [R1+0x8], R2", "accesses to local memory"),
        (80, "LDG.E.NA.128", "LDG.E.NA.64", r"expected 32 LDG\\S\*\\.128, found 0"),
        (80, "STG.E.NA.128", "STG.E.NA.64", r"expected 16 STG\\S\*\\.128, found 0"),
        (80, "STS.E.NA.128", "STS.U16", r"expected 8 STS\\S\*\\.128, found 0"),
        (80, "forward_localIf", "another", "forward_local<float32, nchw>: missing"),
    ],
)
def test_doctored_machine_code_is_found(capability, sound, doctored, finding):
    text = listing(capability)
    assert sound in text
    assert re.search(
        finding, "\n".join(amiss(read_code(text.replace(sound, doctored)), capability))
    )


def test_one_lost_access_is_found():
    """Of a sweep of one kernel, where all its others are as they should be."""
    at = listing(90).rindex("LDG.E.NA.128")
    text = listing(90)[:at] + "LDG.E" + listing(90)[at + len("LDG.E.NA.128") :]
    assert len(amiss(read_code(text), 90)) == 1


def test_usage_is_read():
    kernel = Kernel("backward", "local", "float16", "nhwc", True)
    usage = (
        "arch = sm_120\n"
        " Function _Zanother:\n  REG:9 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:776\n"
        f" Function {mangled(kernel)}:\n  REG:94 STACK:8 SHARED:0 LOCAL:16 CONSTANT[0]:776\n"
    )
    another, found = read_usage(usage)
    assert another == cuda_listing.Resources(120, "_Zanother", 9, 0, 0)
    assert found == cuda_listing.Resources(120, kernel, 94, 8, 16)


# --- the library --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built():
    """Its build information, after a look at whether it was built."""
    names = SimpleNamespace(**runpy.run_path(str(Path(FOLDER) / "_build_info.py")))
    assert names.CUDA_BUILT, names.CUDA_ERROR
    return names


@pytest.fixture(scope="module")
def library(built):
    (path,) = Path(FOLDER).resolve().glob("_cuda*.so")
    return path


@pytest.fixture(scope="module")
def listed(library):
    assert cuda_listing.cuobjdump() is not None, "needs cuobjdump: install triton"
    return library


def capabilities_wanted() -> list[int]:
    """Of the library, for one test each."""
    if FOLDER is None or not (Path(FOLDER) / "_build_info.py").exists():
        return []
    names = runpy.run_path(str(Path(FOLDER) / "_build_info.py"))
    return [int(arch) for arch in names.get("CUDA_ARCHS", {"code": ()})["code"]]


def in_process_without_a_gpu(library: Path, script: str) -> str:
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('se_kernels._cuda', {str(library)!r})\n"
        "_cuda = sys.modules[spec.name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(_cuda)\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", load + script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_library
def test_build_information(built):
    assert built.CUDA_ERROR is None
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+", built.CUDA_COMPILER)
    assert built.CUDA_ARCHS["code"]


@needs_library
def test_it_loads_and_lists_its_operations(library):
    """Without torch, before any other library is loaded."""
    names = in_process_without_a_gpu(library, "print(*dir(_cuda), _cuda.DEVICE_TYPE)").split()
    assert {*OPERATIONS, *NORM_OPERATIONS, "workspace_bytes", "norm_workspace_bytes"} <= {*names}
    assert names[-1] == "cuda"


@needs_library
def test_a_call_without_a_gpu_is_one_error(library):
    script = (
        "import torch\n"
        "x, w1 = torch.ones(1, 8, 4, 4), torch.ones(2, 8)\n"
        "for call in range(2):\n"
        "    try:\n"
        "        _cuda.workspace_bytes(0, False, x, w1)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    first, second = in_process_without_a_gpu(library, script).splitlines()
    assert re.match(r"cuda\w+: .*(driver|device)", first), first
    assert first == second


@needs_library
def test_the_backend_says_what_is_missing(library):
    script = "import se_kernels; print(se_kernels.available_backends()['cuda'])"
    assert in_process_without_a_gpu(library, script).strip() == "torch finds no GPU"


@needs_library
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_nothing_of_cuda_is_linked_or_exported(library):
    """Beside torch's own CUDA runtime, or where there is none."""

    def readelf(*options):
        command = ["readelf", "--wide", *options, str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("--dynamic"))
    assert needed
    forbidden = ("cuda", "nv", "torch", "c10", "python")
    assert [name for name in needed if any(word in name for word in forbidden)] == []
    symbols = [line.split() for line in readelf("--dyn-syms").splitlines()]
    defined = [s[7] for s in symbols if len(s) > 7 and s[4] in ("GLOBAL", "WEAK") and s[6] != "UND"]
    assert "PyInit__cuda" in defined
    assert [name for name in defined if re.match("_*cu[A-Z]|_*cuda|.*se_kernels", name)] == []


@needs_library
def test_it_holds_what_its_information_says(built, listed):
    elf = {int(arch) for arch in re.findall(r"\.sm_(\d+)\.cubin", told("--list-elf", listed))}
    ptx = {int(arch) for arch in re.findall(r"\.(?:sm|compute)_(\d+)\.ptx", told("-lptx", listed))}
    assert elf == {*map(int, built.CUDA_ARCHS["code"])}
    assert ptx == {*map(int, built.CUDA_ARCHS["ptx"])}


@needs_library
def test_registers_are_enough(built, listed):
    """No kernel has a stack frame, which is where spilled registers lie, but for a few words."""
    usage = [*read_usage(told("--dump-resource-usage", listed))]
    for capability in map(int, built.CUDA_ARCHS["code"]):
        assert cuda_listing.missing(u.kernel for u in usage if u.capability == capability) == []
    most = {u: cuda_listing.MOST_SPILLED if cuda_listing.spills(u.kernel) else 0 for u in usage}
    assert [f"{u.capability}: {u.kernel}" for u in usage if u.stack > most[u] or u.local] == []


@needs_library
@pytest.mark.parametrize("capability", capabilities_wanted())
def test_machine_code(listed, capability):
    code = read_code(told("--dump-sass", "-arch", f"sm_{capability}", listed))
    assert amiss(code, capability) == []


@needs_library
def test_the_ptx_assembles_for_a_later_gpu(built, listed, setup_py, tmp_path):
    """The newest that nvcc knows; one file of it stands for all, which have the same header."""
    if not built.CUDA_ARCHS["ptx"]:
        pytest.skip("built without PTX")
    nvcc = setup_py._nvcc()
    newest = max(setup_py._known_to(nvcc))
    command = [cuda_listing.cuobjdump(), "-xptx", "all", str(listed)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    kernels = [path for path in tmp_path.glob("*.ptx") if ".entry" in path.read_text()]
    smallest = min(kernels, key=lambda path: path.stat().st_size)
    command = [nvcc, f"-arch=sm_{newest}", "--cubin", str(smallest), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
