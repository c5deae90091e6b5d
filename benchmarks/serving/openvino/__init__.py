"""A minimal OpenAI-compatible server of OpenVINO GenAI, the peer that `python -m benchmarks.serving --peer` measures.

It runs in an environment of its own, so nothing here imports sts_export.
"""
