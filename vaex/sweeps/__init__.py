"""Many runs from one command: which jobs there are, running them side by side, going on, and what came of them."""
