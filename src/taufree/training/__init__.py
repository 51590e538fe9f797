"""Training: ``taufree train CONFIG``."""
