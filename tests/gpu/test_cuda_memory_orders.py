"""The memory orders that csrc/cuda/primitives.cuh writes in PTX, which no host compiler reads: each
is what the function promises, and what the stand-in takes it for (tests/cuda_on_host/races.h)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
STAND_IN = ROOT / "tests" / "cuda_on_host"

# What a function says of memory, in PTX or by CUDA's own names, and why so.
SAYS = {
    # joins the threads of a block: PTX's barrier.sync, an acquire and release of each
    "block_barrier": ["__syncthreads"],
    "shuffle_xor": ["__shfl_xor_sync"],  # no order: it has no memory operation
    # weak accesses; a policy of the caches is no order
    "load": ["ld.global.L1::no_allocate.L2::cache_hint.v4.u32", "ld.global.v4.u32"],
    "store_keep": ["st.global.L2::cache_hint.v4.u32", "st.global.v4.u32"],
    "store_stream": ["st.global.cs.v4.u32"],
    "load_shared_result": [
        "__ldcg",
        "__ldcg",
    ],  # past the L1, which other blocks' stores do not reach
    # gpu: blocks of a launch lie on any multiprocessor
    "take": ["atomicAdd"],  # relaxed
    "add_release": ["red.release.gpu.global.add.u32"],
    "count_in": ["atom.add.acq_rel.gpu.global.u32"],
    "read_count": ["ld.acquire.gpu.global.u32"],
}
# What the stand-in takes a counter's function for.
ON_HOST = {
    "take": "relaxed",
    "add_release": "release",
    "count_in": "acquire_release",
    "read_count": "acquire",
}

OF_MEMORY = re.compile(
    r"\b((?:ld|st|atom|red|membar|fence|barrier|bar|mbarrier|cp|multimem)\.[\w.:]+)"
)
INTRINSIC = re.compile(
    r"\b(__syncthreads\w*|__syncwarp|__threadfence\w*|__shfl\w*|__ld[a-z]+|__st[a-z]+|atomic[A-Z]\w*)\("
)


def without_comments(text):
    return re.sub(r"//[^\n]*", "", text)


def functions(text):
    """(name, body) of each SE_DEVICE function of the part that nvcc compiles."""
    text = without_comments(text[text.index("#define SE_DEVICE __device__") :])
    for match in re.finditer(r"SE_DEVICE [\w:<> ]+[ *&](\w+)\([^)]*\) \{", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield match[1], text[match.end() : end - 1]


def assembly(body):
    """(" volatile", its instructions on memory, the rest) of each asm statement that has any."""
    for volatile, arguments in re.findall(r"asm( volatile)?\((.*?)\);", body, re.DOTALL):
        code = re.match(r'(\s*"[^"]*")+', arguments)[0]
        if instructions := OF_MEMORY.findall(code.replace("\\n", " ")):
            yield volatile, instructions, arguments[len(code) :]


@pytest.fixture(scope="module")
def primitives():
    return list(functions((CUDA / "primitives.cuh").read_text()))


def test_each_function_says_what_it_must_of_memory(primitives):
    said = {}
    for name, body in primitives:
        found = [match[1] for match in INTRINSIC.finditer(body)]
        for _, instructions, _ in assembly(body):
            found += instructions
        if found:
            said.setdefault(name, []).extend(found)
    assert said == SAYS


def test_the_compiler_moves_no_access_across_an_order(primitives):
    """asm volatile, and "memory" for what orders others."""
    judged = 0
    for name, body in primitives:
        for volatile, (first, *_), rest in assembly(body):
            judged += 1
            assert volatile, f"{name}: {first}"
            if not first.startswith("ld.global.") or "acquire" in first:
                assert rest.rstrip().endswith('"memory"'), f"{name}: {first}"
    assert judged == 8


def test_only_the_primitives_have_assembly_and_intrinsics():
    for path in CUDA.glob("*.cu*"):
        text = without_comments(path.read_text())
        if path.name != "primitives.cuh":
            assert "asm" not in text, path
            assert not INTRINSIC.search(text), path


def test_the_stand_in_takes_counters_for_what_they_are(primitives):
    text = (STAND_IN / "counters.cpp").read_text()
    orders = dict(re.findall(r"\n[\w:]+ (\w+)\([^)]*\) \{[^}]*?Order::(\w+)", text))
    orders = {name: order for name, order in orders.items() if name in dict(primitives)}
    assert orders == ON_HOST
    for name, order in orders.items():
        qualifier = {"acquire_release": "acq_rel", "relaxed": None}.get(order, order)
        assert qualifier is None or f".{qualifier}." in SAYS[name][0]
