"""Networks that others proposed, written from their papers and trained here on a part of the same data."""
