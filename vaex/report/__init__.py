"""What `vaex report` writes, one subject a file: runs and what differs between them, statistics, plots, pages."""
