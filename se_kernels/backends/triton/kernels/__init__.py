"""The kernels and their launchers, assembled from the phases."""
