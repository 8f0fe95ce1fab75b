"""Kept rollouts as one row in which every prompt stands once."""
