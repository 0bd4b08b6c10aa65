"""Deletion: find it, plan it, take it out, train again without it, and prove that it is gone."""
