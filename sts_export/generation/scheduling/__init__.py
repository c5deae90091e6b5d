"""Requests of many clients share the slots of one set of KV caches."""
