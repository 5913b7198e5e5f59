"""The block on random cases, 500 a dtype of x; SE_KERNELS_EXAMPLES asks for another number."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import DTYPES
from random_cases import check_placed, placed_cases, random_cases

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]

EXAMPLES = int(os.environ.get("SE_KERNELS_EXAMPLES", "500"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@random_cases(EXAMPLES)
@given(data=st.data())
def test_random_cases(kernel, device, dtype, data):
    check_placed(kernel, device, data.draw(placed_cases(dtype)))
