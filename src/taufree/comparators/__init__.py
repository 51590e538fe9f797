"""Networks that others proposed, written from their papers, trained here on a part of the data."""
