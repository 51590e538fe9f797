"""Speed beside PBE and the parent, in the same process: ``taufree bench``."""
