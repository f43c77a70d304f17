"""The path as one study: rows or a sweep, over seeds, beside the paper, with its claims tested."""
