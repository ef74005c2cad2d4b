"""Run folders: claiming one, writing to it, reading it back, and finding the runs below a folder."""
