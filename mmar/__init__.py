"""mmar: the reference model of the paper, built on diffparam."""
