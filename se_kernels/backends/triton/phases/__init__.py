"""The three phases and what they share, as functions that the kernels assemble."""
