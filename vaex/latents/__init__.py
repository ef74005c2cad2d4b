"""Priors p(z), and families of posteriors q(z|x)."""
