"""Encoders and decoders. An architecture is a module with two classes, derived from those in architectures/base.py."""
