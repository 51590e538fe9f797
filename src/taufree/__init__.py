"""taufree"""
