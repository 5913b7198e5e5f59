"""The cases of a batch norm and its block, which ``python -m se_kernels check`` judges too."""

from se_kernels.verification.norm_case import (  # noqa: F401
    DIFFERENTIABLE,
    RUNNING,
    Case,
    check,
    composed,
    copies,
    doubles,
    flat,
    make,
    pre_module,
    run,
    run_eager,
    run_judge,
)
