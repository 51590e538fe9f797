"""Networks that others proposed, written from their papers and trained here on the same data."""
