"""Measurements that the docs cite: gaudicc and its peers in one process, interleaved, medians."""
