"""The functional as a file that other programs evaluate without this package."""
