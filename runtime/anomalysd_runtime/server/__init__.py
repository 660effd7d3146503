"""The inspection box: one engine that cameras, people, folders and other software ask for verdicts."""
