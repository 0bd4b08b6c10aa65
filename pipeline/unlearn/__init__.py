"""Approximate unlearning: the losses, updates and the loop that deletions are compared with."""
