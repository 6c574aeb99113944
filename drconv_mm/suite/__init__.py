"""The multi-task benchmark: what a conv type gives, on which task, at what cost."""
