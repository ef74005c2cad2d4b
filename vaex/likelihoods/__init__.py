"""Likelihoods: what the decoder's output says about an image, as a distribution over images."""
