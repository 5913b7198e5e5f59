"""The gates of a network by class: Figs. 6 and 7 of the paper, for any model and folder of images.

folder (images by class) → gates (means and spreads) → figures; ``python -m se_kernels.analysis``
is the command line. Needs click, matplotlib, pillow and rich: ``pip install se_kernels[analysis]``.
"""

from se_kernels.analysis.figures import draw_classes, draw_spread
from se_kernels.analysis.folder import ImageFolder
from se_kernels.analysis.gates import LayerStatistics, gates_by_class, layer_statistics

__all__ = [
    "ImageFolder",
    "LayerStatistics",
    "draw_classes",
    "draw_spread",
    "gates_by_class",
    "layer_statistics",
]
