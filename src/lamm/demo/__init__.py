"""The demonstration: pre-train on a joint data set, fine-tune with and without it, report."""
