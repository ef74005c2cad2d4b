"""One module for each verb of the `vaex` command."""
