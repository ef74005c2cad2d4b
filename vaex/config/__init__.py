"""The config: its schema, creating objects from it, which targets it may name, its help and its error messages."""
