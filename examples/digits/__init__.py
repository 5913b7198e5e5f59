"""CIFAR-style training on scikit-learn's handwritten digits: ``python -m examples.digits``.

data (images) → network (the contenders) → training (one run, with its checkpoints) → curves (figure
and table); processes is what torchrun adds. ``__main__`` is the command line. With what it has
trained: ``python -m examples.digits.prune``, and ``.images`` for se_kernels.analysis.
"""
