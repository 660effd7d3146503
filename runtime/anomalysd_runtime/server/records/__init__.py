"""What is remembered: the SQLite record, its retention, the last verdicts, questions to it."""
