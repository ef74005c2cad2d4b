"""What is said about z: families of posteriors q(z|x), and priors p(z)."""
