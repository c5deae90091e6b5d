"""One file a family, named after the ``model_type`` of config.json, with its class as ``REFERENCE``."""
