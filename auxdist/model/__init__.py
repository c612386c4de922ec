"""Backbones, the network, its losses and its weights. Knows no rank, no path in a run, no data."""
