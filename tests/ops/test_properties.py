"""The block on random cases, 500 a dtype of x; SE_KERNELS_EXAMPLES asks for another number."""

import os

import pytest
from hypothesis import given
from operator_cases import DTYPES
from random_cases import check_placed, placed_cases, random_cases

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]

EXAMPLES = int(os.environ.get("SE_KERNELS_EXAMPLES", "500"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(kernel, backend, device, dtype):
    @random_cases(EXAMPLES, backend)
    @given(placed_cases(dtype))
    def check_all(placed):
        check_placed(kernel, device, placed)

    check_all()
