"""`make gpu`: builds, checks and measurements on a GPU, in one call or in several."""
