"""Writes, validates and reads the artifact: Triton configurations as protobuf, engine_config.json, manifest.

Imports nothing: Triton's stubs read parts of this package and must start fast.
"""
