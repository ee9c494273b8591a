"""hermes-deploy: from a Mistral-family chat checkpoint to a verified endpoint on Triton.

Importing this package imports nothing heavy: `hermes_deploy.client` must stay usable with
grpc and the standard library alone.
"""

import os

# onnxruntime 1.31 sends usage data to its maker unless this is set before it is first imported; what a
# user builds, serves and asks stays here. Set it to 0 yourself to have that back.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
