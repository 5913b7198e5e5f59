"""Reads the machine code of a GPU (SASS), and executes it: what a launch costs, without a GPU.

``listing`` parses what cuobjdump prints, ``loops`` finds loops, ``operations`` and ``machine``
execute blocks, ``measure`` counts what the launches of a problem execute.
"""
