"""Datasets: uint8 images with a train / validation / test split, and what turns a batch of them into floats."""
