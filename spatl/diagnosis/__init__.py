"""Diagnosis of a federation: which client has faulty data, and what its model gets wrong because of which filters."""
