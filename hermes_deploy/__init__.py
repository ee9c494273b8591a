"""hermes-deploy: from a Mistral-family chat checkpoint to a verified endpoint on Triton.

Importing this package imports nothing heavy: `hermes_deploy.client` must stay usable with
grpc and the standard library alone.
"""

__version__ = "0.1.0"
