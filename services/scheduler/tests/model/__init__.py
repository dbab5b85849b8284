"""A model of the whole system around the real scheduler: executors, engines, broker and clock (test_model.py)."""
