"""The benchmark: fastconv beside its peers, layer by layer, in one run."""
