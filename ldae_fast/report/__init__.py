"""Takes results and shows them: progress line, metrics.jsonl, pictures, tables and report.html."""
